"""A run's folder: is another process stuck in it, and can the run be resumed."""

import time
from collections.abc import Iterator
from pathlib import Path

from polypfed.core.checkpoint import examine
from polypfed.core.errors import CheckpointError
from polypfed.doctor.finding import Finding, ok
from polypfed.report.watch.locks import holder, is_open

SILENT = 3600.0  # seconds: the usual deadline of an exchange


def lock(folder: Path, now: float | None = None, silent: float = SILENT) -> Iterator[Finding]:
    """A process that holds the folder and has written nothing for long is stuck, or was forgotten."""
    if not (folder / ".lock").exists():
        return
    what = f"lock of {folder.name}"
    if not is_open(folder):
        yield ok(what, "no process holds it")
        return
    last = max((p.stat().st_mtime for p in folder.iterdir() if p.is_file() and p.name != ".lock"), default=0.0)
    age, pid = (time.time() if now is None else now) - last, holder(folder)
    who = f"process {pid}" if pid else "a process"
    if age < silent:
        yield ok(what, f"{who} works there")
        return
    detail = f"{who} holds it and has written nothing for {age / 3600:.1f} h"
    yield Finding(what, "error", detail, f"Look what it does: ps -fp {pid or 'PID'}; end it, then run with --resume")


def checkpoint(folder: Path) -> Iterator[Finding]:
    """Whether a resume would work: each of the checkpoints, newest first."""
    what = f"checkpoint of {folder.name}"
    generations = examine(folder / "checkpoint")
    good = [path for path, error in generations if error is None]
    bad = [(path, error) for path, error in generations if error is not None]
    if good and not (bad and bad[0][0] > good[0]):
        yield ok(what, f"{good[0].name} can be resumed")
    elif good:
        remedy = f"Nothing need be done: a resume goes on from {good[0].name}. See to the disk if it comes again"
        yield Finding(what, "note", f"{bad[0][0].name} {_problem(bad[0][1])}", remedy)
    elif bad:
        old = "another version" in _problem(bad[0][1])
        remedy = "Resume it with the version in run.json, under versions" if old else "Start the run anew"
        yield Finding(what, "error", f"{bad[0][0].name} {_problem(bad[0][1])}", f"{remedy}; the model files are whole")


def _problem(error: CheckpointError | None) -> str:
    return "" if error is None else error.problem
