"""The table of faults counts every seed once and says what is not as it should be."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.problems import ROOT

ABOUT = {"date": "2026-01-02T03:04:05+00:00", "cpu": "a processor", "versions": {"python": "3"}}


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import faults

    return faults


def rows(folder: Path, name: str, *found: dict[str, Any]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(ABOUT | row) + "\n" for row in found))


def cells(text: str, first: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {first}")]


def test_every_seed_and_parser_counts_once(faults: Any, tmp_path: Path) -> None:
    seed = {"engine": "flower", "rate": 0.01}
    ended = ["same", "without", "same", "hung", "failed"]
    found = [seed | {"seed": i, "ended": what, "seconds": 10 + i} for i, what in enumerate(ended)]
    rows(tmp_path, "chaos", *found, seed | {"seed": 0, "ended": "same", "seconds": 10})
    kill = {"killed": "server", "kills": 9, "lost_rounds": 2, "other_bits": 1}
    rows(tmp_path, "kills", kill | {"kills": 1}, kill)
    parser = {"parser": "study", "slowest_cpu_s": 0.0123, "grown_mb": 0.4, "cpu_s": 6.6, "seed": 0}
    rows(tmp_path, "fuzz", parser | {"inputs": 1_000_000}, parser | {"inputs": 10, "cpu_s": 0.0})
    text = faults.text(tmp_path)
    assert cells(text, "flower") == [["flower", "1.0%", "5", "2", "1", "1", "1", "12", "14"]]
    assert cells(text, "server") == [["server", "9", "2", "1"]]
    assert cells(text, "study") == [["study", "1,000,000", "12.3", "0.4", "7"]]
    assert text.count("2026-01-02, a processor; python 3.") == 3


def test_the_table_is_that_of_the_rows(faults: Any) -> None:
    assert (faults.RESULTS / "table.md").read_text() == faults.text(faults.RESULTS)
