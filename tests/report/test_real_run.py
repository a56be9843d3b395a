"""The report of a run that the engine itself has written, so that the two cannot drift apart."""

from pathlib import Path

import numpy as np

import polypfed as pf
from polypfed.report import write_report
from polypfed.report.read import read_run


def _client(name: str, target: float) -> pf.NumpyClient:
    return pf.NumpyClient(name, lambda x: x - target, np.zeros(3, np.float32), lr=0.5, steps=2, weight=4)


def test_a_run_of_the_engine_can_be_reported(tmp_path: Path) -> None:
    fed = pf.Federation(clients=[_client("north", 1.0), _client("south", 3.0)], strategy=pf.strategies.FedAvg())
    fed.run(rounds=2, backend=pf.backends.Local(), directory=tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert run.series("accepted") == {1: 2.0, 2: 2.0}
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    for words in ("Seconds by round", "Megabytes by round", "every update passed the gate", "fedavg", "2 rounds"):
        assert words in page
