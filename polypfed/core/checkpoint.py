"""Checkpoints: atomic, complete, verified, three generations deep."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from polypfed.core.errors import CheckpointError
from polypfed.core.files import read_framed, write_framed
from polypfed.core.model import ModelSpec, Vector

log = logging.getLogger(__name__)
KEEP = 3
_NAME = re.compile(r"round-(\d{6})\.ckpt")


@dataclass
class Checkpoint:
    """Everything a resume needs.

    Attributes:
        run: id of the run; settings: what must not change in a resume.
        round: the last completed server round.
        spec, x: the layout and the global model, (P,).
        state: the strategy's state: vectors and JSON numbers.
        accepted: for each client the last round in which its update counted.
        rows, failures: how many lines of the history files are valid.
        best, best_round, best_value, best_sites: the best global model so far and how many sites scored it.
        scores: what the sites said of the global model: metrics and the number of validation examples.
        privacy: what the stages keep at the server: JSON values.
        audit: where the audit log ended when this was written, as `audit.Head`; empty without one.
        flight: asynchronous work under way: JSON values; bases: the models it started from, by version.
    """

    run: str
    settings: dict[str, Any]
    round: int
    spec: ModelSpec
    x: Vector
    state: Mapping[str, Any]
    accepted: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    failures: int = 0
    best: Vector | None = None
    best_round: int = 0
    best_value: float | None = None
    best_sites: int = 0
    scores: dict[str, Any] = field(default_factory=dict)
    privacy: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    flight: dict[str, Any] = field(default_factory=dict)
    bases: dict[int, Vector] = field(default_factory=dict)


_PLAIN = tuple(
    "run settings round accepted rows failures best_round best_value best_sites scores privacy audit flight".split()
)


def save(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write one generation and drop those beyond the last three."""
    # safetensors writes the memory of an array as it lies, strides and all
    vectors = {
        f"state.{k}": np.asarray(v, order="C") for k, v in checkpoint.state.items() if not isinstance(v, int | float)
    }
    numbers = {k: v for k, v in checkpoint.state.items() if isinstance(v, int | float)}
    vectors["x"] = checkpoint.x
    vectors |= {f"base.{version}": base for version, base in checkpoint.bases.items()}
    if checkpoint.best is not None:
        vectors["best"] = checkpoint.best
    header = {k: getattr(checkpoint, k) for k in _PLAIN} | {"spec": checkpoint.spec.to_json(), "numbers": numbers}
    path = directory / f"round-{checkpoint.round:06d}.ckpt"
    write_framed(path, header, safetensors.numpy.save(vectors))
    for old in _generations(directory)[KEEP:]:
        old.unlink(missing_ok=True)
    return path


def load(directory: Path) -> Checkpoint:
    """The newest checkpoint that is whole; a damaged one is named in the log and the one before it is taken.

    Raises:
        CheckpointError: there is none.
    """
    for path in _generations(directory):
        try:
            return _read(path)
        except CheckpointError as error:
            log.error("%s; trying the checkpoint before it", error)  # the command line shows errors
    raise CheckpointError("holds no usable checkpoint", where=directory, remedy="Start the run anew")


def skipped(directory: Path, round: int) -> int:
    """How many checkpoints are newer than that of `round`: those that `load` could not use."""
    return sum(path.stem > f"round-{round:06d}" for path in _generations(directory))


def examine(directory: Path) -> list[tuple[Path, CheckpointError | None]]:
    """Every checkpoint, newest first, with what is wrong with it."""
    return [(path, _fault(path)) for path in _generations(directory)]


def _fault(path: Path) -> CheckpointError | None:
    try:
        _read(path)
    except CheckpointError as error:
        return error
    return None


def exists(directory: Path) -> bool:
    """True if there is a checkpoint, whole or not."""
    return bool(_generations(directory))


def _generations(directory: Path) -> list[Path]:
    found = directory.iterdir() if directory.is_dir() else iter(())
    return sorted((p for p in found if _NAME.fullmatch(p.name)), reverse=True)


def _read(path: Path) -> Checkpoint:
    header, body = read_framed(path)
    try:
        vectors = safetensors.numpy.load(body)
        state: dict[str, Any] = {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}
        spec = ModelSpec.from_json(header["spec"])
        if vectors["x"].size:  # a blind server holds no model
            spec.views(vectors["x"])
        return Checkpoint(
            **{k: header[k] for k in _PLAIN},
            spec=spec,
            x=vectors["x"],
            state=state | header["numbers"],
            best=vectors.get("best"),
            bases={int(k[5:]): v for k, v in vectors.items() if k.startswith("base.")},
        )
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"was written by another version ({error})", where=path) from None
