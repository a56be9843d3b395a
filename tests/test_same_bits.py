"""One seed, one result, with the real detector: twice, with 1 and 2 workers, and killed in the middle and resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polypfed.backends import Local
from polypfed.clients import DetectorClient
from polypfed.core.rundir import load_model
from polypfed.data import open_partition
from polypfed.data.synth import synth
from polypfed.federation import Federation
from polypfed.select import Below

ROUNDS = 3
pytestmark = pytest.mark.slow


def federation(root: Path) -> Federation:
    clients = [
        DetectorClient(name, train=site.train, val=site.val, imgsz=64, batch=4, epochs=1, selector=Below(0.7))
        for name, site in open_partition(root).items()
    ]
    return Federation(clients=clients, quorum=2, seed=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bits") / "data"
    synth(folder, sites=2, train=8, val=3, size=64, seed=2)
    return folder


@pytest.fixture(scope="module")
def straight(root: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    history = federation(root).run(ROUNDS, Local(), tmp_path_factory.mktemp("run") / "straight")
    assert history.model is not None
    return history.model.tobytes()


def test_twice_in_a_row(root: Path, straight: bytes) -> None:
    history = federation(root).run(ROUNDS, Local())
    assert history.model is not None
    assert history.model.tobytes() == straight


def test_two_workers(root: Path, straight: bytes) -> None:
    history = federation(root).run(ROUNDS, Local(workers=2))
    assert history.model is not None
    assert history.model.tobytes() == straight


def test_killed_in_the_middle_of_a_round_and_resumed(root: Path, straight: bytes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code = (
        "import importlib.util, sys, pathlib\n"
        f"spec = importlib.util.spec_from_file_location('bits', {__file__!r})\n"
        "bits = importlib.util.module_from_spec(spec); spec.loader.exec_module(bits)\n"
        "def say(event): print(event.kind, event.round, event.site, flush=True)\n"
        f"bits.federation(pathlib.Path({str(root)!r})).run({ROUNDS}, bits.Local(), {str(run)!r}, say)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    for line in process.stdout:
        if line.split()[:3] == ["fit", "2", "site-1"]:  # the first site of round 2 is done, the second is at work
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait(60) == -signal.SIGKILL
    history = federation(root).resume(run, ROUNDS, Local())
    assert history.model is not None
    assert history.model.tobytes() == straight
    assert load_model(run / "model.safetensors")[1].tobytes() == straight
    assert [r["round"] for r in history.rows if r["metric"] == "accepted"] == [1, 2, 3]
