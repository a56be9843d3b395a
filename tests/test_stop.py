"""SIGTERM, a full disk and damaged checkpoints: the run is over at once, and goes on to the same bits."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from time import monotonic

import pytest

from polypfed.backends import Local
from polypfed.core import audit
from polypfed.core import checkpoint as checkpoints
from polypfed.core.errors import CheckpointError
from tests.killable import digest, federation, go
from tests.problems import ROOT

PROGRAM = """
import sys
from pathlib import Path
from polypfed import cli
from tests.killable import go
cli.app = lambda: go(Path(sys.argv[1]), 30, int(sys.argv[2]), 0.05)
cli.main()
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_ends_a_run_at_once_and_it_can_be_resumed(tmp_path: Path, workers: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), str(workers)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    end = monotonic() + 60
    while not (tmp_path / "run" / "checkpoint" / "round-000001.ckpt").exists() and monotonic() < end:
        time.sleep(0.01)
    begun = monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143
    assert said.splitlines() == ["polypfed: stopped; a run goes on with --resume"]
    assert monotonic() - begun < 5
    assert audit.entries(tmp_path / "run" / "audit.jsonl")[-1]["event"] == "stopped"
    done = checkpoints.load(tmp_path / "run" / "checkpoint").round
    assert 1 <= done < 30
    assert digest(go(tmp_path / "run", done + 2)) == digest(go(tmp_path / "straight", done + 2))
    assert audit.verify(tmp_path / "run" / "audit.jsonl").good


def test_files_that_may_not_grow_end_the_run_in_one_line(tmp_path: Path) -> None:
    """The operating system itself refuses (RLIMIT_FSIZE), in the middle of a write."""
    go(tmp_path, 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "audit.jsonl").stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 600, before[1]))
        with pytest.raises(CheckpointError, match="cannot be written"):
            federation().resume(tmp_path, 4, Local())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints.load(tmp_path / "checkpoint").round == 2
    assert digest(go(tmp_path, 4)) == digest(go(tmp_path.parent / f"{tmp_path.name}-straight", 4))


@pytest.mark.parametrize("spoil", ["flip", "cut", "empty"])
def test_a_damaged_checkpoint_falls_back_and_says_so(
    tmp_path: Path, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    go(tmp_path / "run", 3)
    path = tmp_path / "run" / "checkpoint" / "round-000003.ckpt"
    data = path.read_bytes()
    flipped = data[:99] + bytes([data[99] ^ 1]) + data[100:]
    path.write_bytes({"flip": flipped, "cut": data[: len(data) // 2], "empty": b""}[spoil])
    resumed = go(tmp_path / "run", 4)
    assert "trying the checkpoint before it" in caplog.text
    assert digest(resumed) == digest(go(tmp_path / "straight", 4))
    last = [e for e in audit.entries(tmp_path / "run" / "audit.jsonl") if e["event"] == "resume"]
    assert [(e["round"], e["facts"]["skipped"]) for e in last] == [(2, 1)]


def test_every_flipped_byte_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    go(tmp_path / "run", 1)
    folder = tmp_path / "run" / "checkpoint"
    path = folder / "round-000001.ckpt"
    data = path.read_bytes()
    for at in range(0, len(data), max(1, len(data) // 1000)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        assert checkpoints.load(folder).round == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())
