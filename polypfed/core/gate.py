"""The gate: every update is checked whole before any of it counts. All or nothing, with a typed reason."""

import math
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

import numpy as np

from polypfed.core.errors import MessageError, Refused
from polypfed.core.messages import HEADER_LIMIT, Evaluation, Failure, Reply, Task, Update, decode, one_line, sound
from polypfed.core.model import Vector

REASONS = (
    "size header unknown-client wrong-run stale-round late duplicate "
    "weight metrics keys dtype shape signature wrong-base non-finite norm".split()
)
"""Why an update is refused, in the order of the checks: cheap ones first."""

MAX_WEIGHT = 10_000_000
"""More examples than any site has."""

_SEALED = re.compile(r"(frame\.\d{5}|levels|snapshot|id|keys|signature|reveal|(key|share)\.[A-Za-z0-9_-]{1,63})")
_TOLERATED = HEADER_LIMIT + (1 << 16)  # bytes of a message beside its vectors


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
        verify: called with the update, raises Refused unless its sender's signature is good; None asks for none.
        base: SHA-256 of the model the clients were sent, which a signed update must name; "" asks for none.
    """

    run: str
    round: int
    cohort: frozenset[str]
    lengths: Mapping[str, int]
    max_norm: float
    max_weight: int = MAX_WEIGHT
    verify: Callable[[Update], None] | None = None
    base: str = ""
    accepted: set[str] = field(default_factory=set)
    given_up: set[str] = field(default_factory=set)

    def admit(self, update: Update) -> Update:
        """The update itself, once every check has passed; nothing is counted before that.

        Raises:
            Refused: with one of REASONS.
        """
        self._identity(update)
        self._numbers(update)
        self._layout(update.vectors, update.client)
        self._origin(update)
        self._values(update.vectors, update.client)
        self.accepted.add(update.client)
        return update

    def give_up(self, client: str) -> None:
        """Nothing more is expected of this client in this round."""
        if client not in self.accepted:
            self.given_up.add(client)

    def _identity(self, update: Update) -> None:
        who = update.client
        if type(who) is not str or who not in self.cohort:
            raise Refused("unknown-client", "was not asked in this round", where=who)
        if update.run != self.run:
            raise Refused("wrong-run", f"belongs to run {update.run!r}, not {self.run!r}", where=who)
        if type(update.round) is not int or update.round != self.round:
            raise Refused("stale-round", f"is for round {update.round!r}, not {self.round}", where=who)
        if who in self.given_up:
            raise Refused("late", "came after this client had been given up", where=who)
        if who in self.accepted:
            raise Refused("duplicate", "has already been counted in this round", where=who)

    def _numbers(self, update: Update) -> None:
        weight = update.weight
        if type(weight) is not int or not 0 <= weight <= self.max_weight:
            raise Refused(
                "weight", f"{weight!r} is not a whole number from 0 to {self.max_weight}", where=update.client
            )
        if not sound(update.metrics):
            raise Refused("metrics", "a metric is not a finite number under a plain name", where=update.client)

    def _layout(self, vectors: Mapping[str, Vector], who: str) -> None:
        if not isinstance(vectors, Mapping) or set(vectors) != set(self.lengths):
            found = sorted(map(str, vectors)) if isinstance(vectors, Mapping) else type(vectors).__name__
            raise Refused("keys", f"vectors {found}, not {sorted(self.lengths)}", where=who)
        for name, length in self.lengths.items():
            vector = vectors[name]
            if not isinstance(vector, np.ndarray) or vector.dtype != np.float32:
                raise Refused("dtype", f"{name} is {getattr(vector, 'dtype', type(vector).__name__)}", where=who)
            if vector.shape != (length,) or not vector.flags.c_contiguous:
                raise Refused("shape", f"{name} has shape {vector.shape}, not ({length},)", where=who)

    def _origin(self, update: Update) -> None:
        if self.verify is None:
            return
        self.verify(update)
        if self.base and update.base != self.base:
            raise Refused("wrong-base", "was trained from another model than this round's", where=update.client)

    def _values(self, vectors: Mapping[str, Vector], who: str) -> None:
        for name, vector in vectors.items():
            norm = norm_of(vector)
            if math.isnan(norm):
                raise Refused("non-finite", f"{name} holds NaN or infinity", where=who)
            if norm > self.max_norm:
                raise Refused("norm", f"{name} has norm {norm:.3g}, more than {self.max_norm:.3g}", where=who)


class SealedGate(Gate):
    """Admits updates whose vectors are bytes under names of the privacy layer; what is in them is checked there."""

    def _layout(self, vectors: Mapping[str, Vector], who: str) -> None:
        if not isinstance(vectors, Mapping) or not all(_SEALED.fullmatch(str(name)) for name in vectors):
            found = sorted(map(str, vectors)) if isinstance(vectors, Mapping) else type(vectors).__name__
            raise Refused("keys", f"vectors {one_line(found, 100)}, not sealed ones", where=who)
        for name, vector in vectors.items():
            if not isinstance(vector, np.ndarray) or vector.dtype != np.uint8:
                raise Refused("dtype", f"{name} is {getattr(vector, 'dtype', type(vector).__name__)}", where=who)
            if vector.ndim != 1 or not vector.flags.c_contiguous:
                raise Refused("shape", f"{name} has shape {vector.shape}", where=who)

    def _values(self, vectors: Mapping[str, Vector], who: str) -> None:
        """Ciphertext shows no values."""


def max_bytes(lengths: Mapping[str, int]) -> int:
    """The largest message that can hold vectors of these lengths, header included."""
    return 4 * sum(lengths.values()) + _TOLERATED


def receive(data: bytes | memoryview, client: str, task: Task) -> Reply:
    """What `client` answered to `task`, off the wire; bytes that are no answer become a Failure, never an exception.

    Args:
        client: who sent the bytes, as the transport knows it; the reply must name itself so.
        task: `config["reply_bytes"]` is the size beyond which nothing is parsed.
    """
    limit = int(task.config.get("reply_bytes", _TOLERATED))
    if len(data) > limit:
        detail = f"{len(data)} bytes, more than the {limit} that this model needs"
        return Failure(client, task.round, "size", detail, task.run)
    try:
        reply = decode(data)
    except MessageError as error:
        return Failure(client, task.round, "header", str(error), task.run)
    if isinstance(reply, Task):
        return Failure(client, task.round, "header", "a Task, not a reply", task.run)
    if reply.client != client:
        return Failure(client, task.round, "unknown-client", f"the reply names itself {reply.client!r}", task.run)
    return reply


def admit_evaluation(evaluation: Evaluation, run: str, round: int, asked: Container[str]) -> None:
    """Check the answer to an evaluation; `asked` holds the sites not heard of yet.

    Raises:
        Refused: with one of REASONS.
    """
    who = evaluation.client
    if type(who) is not str or who not in asked:
        raise Refused("unknown-client", "was not asked, or has answered already", where=who)
    if evaluation.run != run or evaluation.round != round:
        raise Refused("stale-round", f"is for round {evaluation.round!r} of {evaluation.run!r}", where=who)
    if type(evaluation.weight) is not int or not 0 <= evaluation.weight <= MAX_WEIGHT:
        raise Refused("weight", f"{evaluation.weight!r} is not a whole number from 0 to {MAX_WEIGHT}", where=who)
    if not sound(evaluation.metrics):
        raise Refused("metrics", "a metric is not a finite number under a plain name", where=who)


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
