"""The gate: every update is checked whole before any of it counts. All or nothing, with a typed reason."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from polypfed.core.errors import MessageError, Refused
from polypfed.core.messages import Update, decode, finite
from polypfed.core.model import Vector

REASONS = (
    "size header wrong-run stale-round unknown-client duplicate weight metrics keys dtype shape non-finite norm".split()
)
"""Why an update is refused, in the order of the checks: cheap ones first."""


@dataclass
class Gate:
    """Admits the updates of one round.

    Args:
        run: id of the run.
        round: the open server round.
        cohort: the clients asked in this round.
        lengths: the vector names the strategy expects and their lengths, e.g. `{"delta": P}`.
        max_norm: largest Euclidean norm of a delta.
        max_weight: largest number of examples a client may claim.
    """

    run: str
    round: int
    cohort: frozenset[str]
    lengths: Mapping[str, int]
    max_norm: float
    max_weight: int = 10_000_000
    accepted: set[str] = field(default_factory=set)

    @property
    def max_bytes(self) -> int:
        """The largest message that can hold the expected vectors, header included."""
        return 4 * sum(self.lengths.values()) + (1 << 20)

    def admit_bytes(self, data: bytes) -> Update:
        """The update in `data`, checked; size before anything is parsed.

        Raises:
            Refused: with one of REASONS.
        """
        if len(data) > self.max_bytes:
            raise Refused("size", f"{len(data)} bytes, more than the {self.max_bytes} that this model needs")
        try:
            message = decode(data, limit=self.max_bytes)
        except MessageError as error:
            raise Refused("header", str(error)) from None
        if not isinstance(message, Update):
            raise Refused("header", f"a {type(message).__name__}, not an Update")
        return self.admit(message)

    def admit(self, update: Update) -> Update:
        """The update itself, once every check has passed; nothing is counted before that.

        Raises:
            Refused: with one of REASONS.
        """
        self._identity(update)
        self._numbers(update)
        self._layout(update.vectors, update.client)
        self._values(update.vectors, update.client)
        self.accepted.add(update.client)
        return update

    def _identity(self, update: Update) -> None:
        who = str(update.client)
        if update.run != self.run:
            raise Refused("wrong-run", f"belongs to run {update.run!r}, not {self.run!r}", where=who)
        if type(update.round) is not int or update.round != self.round:
            raise Refused("stale-round", f"is for round {update.round}, not {self.round}", where=who)
        if who not in self.cohort:
            raise Refused("unknown-client", "was not asked in this round", where=who)
        if who in self.accepted:
            raise Refused("duplicate", "has already been counted in this round", where=who)

    def _numbers(self, update: Update) -> None:
        weight = update.weight
        if type(weight) is not int or not 0 <= weight <= self.max_weight:
            raise Refused(
                "weight", f"{weight!r} is not a whole number from 0 to {self.max_weight}", where=update.client
            )
        if not finite(update.metrics):
            raise Refused("metrics", "a metric is not a finite number", where=update.client)

    def _layout(self, vectors: Mapping[str, Vector], who: str) -> None:
        if set(vectors) != set(self.lengths):
            raise Refused("keys", f"vectors {sorted(vectors)}, not {sorted(self.lengths)}", where=who)
        for name, length in self.lengths.items():
            vector = vectors[name]
            if not isinstance(vector, np.ndarray) or vector.dtype != np.float32:
                raise Refused("dtype", f"{name} is {getattr(vector, 'dtype', type(vector).__name__)}", where=who)
            if vector.shape != (length,) or not vector.flags.c_contiguous:
                raise Refused("shape", f"{name} has shape {vector.shape}, not ({length},)", where=who)

    def _values(self, vectors: Mapping[str, Vector], who: str) -> None:
        for name, vector in vectors.items():
            norm = norm_of(vector)
            if math.isnan(norm):
                raise Refused("non-finite", f"{name} holds NaN or infinity", where=who)
            if norm > self.max_norm:
                raise Refused("norm", f"{name} has norm {norm:.3g}, more than {self.max_norm:.3g}", where=who)


def norm_of(vector: Vector) -> float:
    """Euclidean norm; NaN if a value is not finite. One pass where float32 products suffice, else float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(np.dot(vector, vector))
    if math.isfinite(square) and (square > 0 or not vector.any()):
        return math.sqrt(square)
    if not np.isfinite(vector).all():
        return math.nan
    wide = vector.astype(np.float64)
    return float(np.sqrt(np.dot(wide, wide)))


def default_max_norm(x: Vector) -> float:
    """A bound for models without a better one: an update a thousand times the size of the model is no update."""
    return 1000.0 * (norm_of(x) + math.sqrt(x.size))
