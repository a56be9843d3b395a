"""A run's folder: history, failures, checkpoints and the model, written so that a kill at any point can be resumed."""

import fcntl
import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.numpy

from polypfed.core import checkpoint as checkpoints
from polypfed.core.checkpoint import Checkpoint
from polypfed.core.errors import CheckpointError, ConfigError
from polypfed.core.files import append_lines, sweep, write_atomic
from polypfed.core.history import History
from polypfed.core.messages import Failure
from polypfed.core.model import ModelSpec, Vector


class RunDirectory:
    """The folder of one run.

    Holds `run.json`, `history.jsonl`, `failures.jsonl`, `checkpoint/`, `model.safetensors`, `best.safetensors`, and
    below `sites/` what each hosted client keeps. Use it as a context manager: it is locked while open, and what a
    killed process left half-written is removed.

    Raises:
        ConfigError: the path cannot be a folder, or another process has it open.
        CheckpointError: the disk refuses to take what must be kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> "RunDirectory":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "ab")
        except OSError as error:
            raise ConfigError(f"cannot hold a run ({error.strerror})", where=self.path) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ConfigError(
                "another process is working in this folder", where=self.path, remedy="Wait for it, or choose another"
            ) from None
        sweep(self.path)
        shutil.rmtree(self.spool, ignore_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.spool, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    @property
    def spool(self) -> Path:
        """Where early updates wait when memory is short."""
        return self.path / "spool"

    def begin(self, about: Mapping[str, Any]) -> None:
        """Claim an empty folder for a new run and write `run.json`.

        Raises:
            ConfigError: the folder holds a run already.
        """
        if checkpoints.exists(self.path / "checkpoint"):
            raise ConfigError("holds a run already", where=self.path, remedy="Resume it, or choose another folder")
        about = {"started": datetime.now(UTC).isoformat(timespec="seconds"), **about}
        with self.writing():
            for name in ("history.jsonl", "failures.jsonl"):
                write_atomic(self.path / name, b"")
            write_atomic(self.path / "run.json", json.dumps(about, indent=1).encode() + b"\n")

    def commit(self, checkpoint: Checkpoint, history: History) -> None:
        """Append what is new in `history`, write the model, then the checkpoint that makes both count."""
        rows = [json.dumps(r) for r in history.rows[checkpoint.rows :]]
        failures = [json.dumps(asdict(f)) for f in history.failures[checkpoint.failures :]]
        with self.writing():
            append_lines(self.path / "history.jsonl", rows)
            append_lines(self.path / "failures.jsonl", failures)
            if checkpoint.x.size:  # a blind server holds no model
                save_model(self.path / "model.safetensors", checkpoint.spec, checkpoint.x)
            if checkpoint.best is not None and checkpoint.best.size and checkpoint.best_round == checkpoint.round:
                save_model(self.path / "best.safetensors", checkpoint.spec, checkpoint.best)
            checkpoint.rows, checkpoint.failures = len(history.rows), len(history.failures)
            checkpoints.save(self.path / "checkpoint", checkpoint)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A disk that refuses is a CheckpointError that says what to do."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"cannot be written ({error.strerror})",
                where=error.filename or self.path,
                remedy="Free some space and resume",
            ) from None

    def restore(self) -> tuple[Checkpoint, History]:
        """The last good checkpoint and the history up to it; lines written after it are cut off.

        Raises:
            CheckpointError: there is no usable checkpoint, or the history is shorter than it says.
        """
        checkpoint = checkpoints.load(self.path / "checkpoint")
        rows = _first(self.path / "history.jsonl", checkpoint.rows)
        failures = [Failure(**f) for f in _first(self.path / "failures.jsonl", checkpoint.failures)]
        return checkpoint, History(rows=rows, failures=failures, spec=checkpoint.spec)

    @property
    def started(self) -> bool:
        """True once a checkpoint exists."""
        return checkpoints.exists(self.path / "checkpoint")


def save_model(path: Path, spec: ModelSpec, vector: Vector) -> None:
    """Write a model as safetensors with its own array names, and its layout as metadata."""
    metadata = {"polypfed": json.dumps(spec.to_json())}  # one entry: safetensors would write two in any order
    write_atomic(path, safetensors.numpy.save(spec.views(vector), metadata))


def load_model(path: Path) -> tuple[ModelSpec, Vector]:
    """A model written by `save_model`.

    Raises:
        CheckpointError: the file is missing, damaged or not one of ours.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            spec = ModelSpec.from_json(json.loads(metadata["polypfed"]))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return spec, ModelSpec(spec.parts, spec.boundary).pack(arrays)
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"is not a polypfed model ({error})", where=path) from None


def _first(path: Path, count: int) -> list[dict[str, Any]]:
    """Parse the first `count` lines and drop the rest of the file."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
        values = [json.loads(line) for line in lines[:count]]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be read ({error})", where=path) from None
    if len(values) < count:
        raise CheckpointError(f"has {len(values)} lines, {count} are expected", where=path)
    if len(lines) > count:
        write_atomic(path, b"".join(lines[:count]))
    return values


def machine() -> dict[str, str]:
    """What a run runs on."""
    return {"system": platform.platform(), "python": platform.python_version(), "numpy": np.__version__}
