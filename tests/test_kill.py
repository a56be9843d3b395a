"""SIGKILL of real processes: what was done is there, and the rest comes out as if nothing had happened."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import pytest

from polypfed.core import checkpoint as checkpoints
from tests.killable import digest, go
from tests.problems import ROOT

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}


def started(*arguments: object) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.killable", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE)


def rounds_done(folder: Path) -> int:
    found = sorted((folder / "checkpoint").glob("round-*.ckpt")) if (folder / "checkpoint").is_dir() else []
    return int(found[-1].stem.split("-")[1]) if found else -1


def kill_after(process: "subprocess.Popen[bytes]", folder: Path, rounds: int, delay: float) -> bool:
    """Kill the process `delay` seconds after it completed a round; False if it ended by itself."""
    end = monotonic() + 60
    while rounds_done(folder) < rounds and process.poll() is None and monotonic() < end:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode in (0, -9), errors.decode()
    return process.returncode == -9


def interrupted(folder: Path, rounds: int, workers: int, seed: int, pause: float = 0.004) -> int:
    """Run to the end with kills on the way; how many there were."""
    draw, kills, done = random.Random(seed), 0, -1
    for _ in range(3):
        process = started(folder, rounds, workers, pause)
        kills += kill_after(process, folder, done + draw.randint(1, 2), draw.uniform(0, 0.08))
        done = rounds_done(folder)
        if done >= 0:
            assert checkpoints.load(folder / "checkpoint").round == done  # no completed round is lost
    return kills


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    return digest(go(tmp_path_factory.mktemp("straight"), 8))


@pytest.mark.parametrize("seed", range(4))
def test_killed_in_the_middle_of_rounds(tmp_path: Path, straight: list[object], seed: int) -> None:
    assert interrupted(tmp_path, 8, 1, seed) == 3
    assert digest(go(tmp_path, 8)) == straight


def test_killed_with_worker_processes(tmp_path: Path, straight: list[object]) -> None:
    assert interrupted(tmp_path, 8, 2, seed=9) >= 2
    assert digest(go(tmp_path, 8, workers=2)) == straight


def lines(folder: Path) -> Sequence[dict[str, object]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_the_history_has_every_round_once(tmp_path: Path) -> None:
    interrupted(tmp_path, 8, 1, seed=5)
    history = go(tmp_path, 8)
    assert lines(tmp_path) == history.rows
    keys = [(r["round"], r["site"], r["metric"]) for r in lines(tmp_path)]
    assert len(keys) == len(set(keys))
    assert sorted({int(str(k[0])) for k in keys}) == list(range(9))


def test_killed_at_every_second_write(tmp_path: Path) -> None:
    """In the middle of a write, before each fsync and rename, from first file to last checkpoint; every second one."""
    command = [sys.executable, "-m", "tests.killable", "sweep", str(tmp_path), "2", "1", "2"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    points, *problems = json.loads(done.stdout)
    assert int(points.split()[1]) > 60
    assert problems == []


COUNT = "100" if "POLYPFED_LONG" in os.environ else "6"
"""Of kills at random moments; `python benchmarks/kills.py` makes the table."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "counts"),
    [("server", ["lost_rounds", "other_bits"]), ("clients", ["other_bits", "other_reasons", "beyond_deadline"])],
)
@pytest.mark.timeout(1800)
def test_killed_at_random_moments(tmp_path: Path, what: str, counts: list[str]) -> None:
    """The server's process: no round is lost that was saved. Workers: what came counts in full, the rest not."""
    command = [sys.executable, "-m", "tests.strikes", what, str(tmp_path), COUNT, "7"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] >= int(COUNT)
    assert {name: found[name] for name in counts} == dict.fromkeys(counts, 0)
