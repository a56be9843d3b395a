"""How updates become one vector per name: the streaming mean, and the queue that fixes its order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np

from polypfed.core.axpy import BLOCK, axpy
from polypfed.core.errors import ConfigError
from polypfed.core.files import write_atomic
from polypfed.core.messages import Update, decode, encode
from polypfed.core.model import Vector, nbytes
from polypfed.core.settings import positive

NAMES = 32  # names whose updates are summed before the sum joins the total

Needs = Literal["sum", "updates"]
BUFFERS = "buffers"  # the vector of BatchNorm statistics: whatever weighs the rest, examples weigh these


class Accumulator(Protocol):
    """A reduction under way; updates are added in order of client name.

    One that has a true attribute `any_order` takes them as they come instead, and keeps the order itself. One that
    leaves updates out once it has seen all has a method `refused`: by client, why.
    """

    def add(self, index: int, update: Update) -> None:
        """Count one update, of which only the vectors named at the start are read; without examples it counts nothing.

        index: the client's place among the sorted names of the cohort. The vectors are not kept: they are the
        client's again once this returns.
        """

    def result(self) -> dict[str, Vector]:
        """One float32 vector per name; zeros if nothing was counted."""


class Reducer(Protocol):
    """A rule that turns many updates into one: a frozen dataclass of plain settings.

    Attributes:
        needs: do weighted sums suffice, or must it see single updates?
        least: updates with examples below which the rule means nothing; a round with fewer is void.
    """

    @property
    def needs(self) -> Needs: ...

    @property
    def least(self) -> int: ...

    def start(self, lengths: Mapping[str, int]) -> Accumulator:
        """Begin a round of vectors with these names and lengths: "delta" (T,), "buffers" (P - T,), and what else
        the strategy sends, (T,) each.
        """


@dataclass(frozen=True)
class Mean:
    """The weighted mean, streaming: memory is O(P) however many clients there are.

    Args:
        weights: "examples" (p_i = n_i / sum n), "uniform" (1/m over the updates with n_i > 0), or a weight for every
            client by name. Buffers are weighted by examples in any case.
        dtype: of the accumulator. float64 makes rounding negligible; float32 is three times faster.

    The bits do not depend on the order of arrival: updates are added in order of name, in blocks of 32 names whose
    sums are then added in order.

    Raises:
        ConfigError: weights or dtype is another word, or a client's weight is not above 0.
    """

    weights: Literal["examples", "uniform"] | Mapping[str, float] = "examples"
    dtype: Literal["float64", "float32"] = "float64"
    needs: ClassVar[Needs] = "sum"
    least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if isinstance(self.weights, Mapping):
            positive(**{f"weights.{name}": weight for name, weight in self.weights.items()})
        elif self.weights not in ("examples", "uniform"):
            raise ConfigError(f"{self.weights!r} is not examples, uniform or a weight per client", where="weights")
        if self.dtype not in ("float64", "float32"):
            raise ConfigError(f"{self.dtype!r} is not one of ('float64', 'float32')", where="dtype")

    def weight(self, client: str, examples: int) -> float:
        """What an update with so many examples, at least one, counts.

        Raises:
            ConfigError: weights were given by name, and this client has none.
        """
        if isinstance(self.weights, str):
            return float(examples) if self.weights == "examples" else 1.0
        if client not in self.weights:
            raise ConfigError("has no weight", where=f"weights.{client}", remedy="Give every client one")
        return float(self.weights[client])

    def scale(self, update: Update) -> float:
        """A factor of the delta beside its weight; the weights still sum to one without it."""
        return 1.0

    def start(self, lengths: Mapping[str, int]) -> "_MeanSum":
        """A sum of zero updates."""
        return _MeanSum(self, lengths)


class _MeanSum:
    """Sums are born with their first term, not as zeros to add it to: a pass over memory less."""

    def __init__(self, rule: Mean, lengths: Mapping[str, int]) -> None:
        self._rule, self._lengths = rule, lengths
        self._dtype = np.dtype(rule.dtype)
        self._sums: dict[str, np.ndarray] | None = None  # of the block of names under way
        self._totals: dict[str, np.ndarray] | None = None  # of the blocks before it
        self._weight = self._examples = 0.0
        self._block = 0

    def add(self, index: int, update: Update) -> None:
        """sum += weight * vector, block by block."""
        if index // NAMES != self._block:
            self._close_block()
            self._block = index // NAMES
        if not update.weight:
            return
        weight = self._rule.weight(update.client, update.weight)
        self._weight += weight
        self._examples += update.weight
        factors = {BUFFERS: float(update.weight), "delta": weight * self._rule.scale(update)}
        first = self._sums is None
        if self._sums is None:
            self._sums = {name: np.empty(length, self._dtype) for name, length in self._lengths.items()}
        for name, total in self._sums.items():
            axpy(total, update.vectors[name], factors.get(name, weight), first)

    def _close_block(self) -> None:
        if self._totals is None:
            self._totals, self._sums = self._sums, None
        elif self._sums is not None:
            for name, total in self._totals.items():
                total += self._sums[name]
            self._sums = None

    def result(self) -> dict[str, Vector]:
        """The mean as float32; zeros when no update had weight."""
        self._close_block()
        if self._totals is None:
            return {name: np.zeros(length, np.float32) for name, length in self._lengths.items()}
        return {
            name: self._divided(total, self._examples if name == BUFFERS else self._weight)
            for name, total in self._totals.items()
        }

    def _divided(self, total: np.ndarray, divisor: float) -> Vector:
        out = total if total.dtype == np.float32 else np.empty(total.size, np.float32)
        for start in range(0, total.size, BLOCK):
            part = total[start : start + BLOCK]
            np.divide(part, self._dtype.type(divisor), out=part)
            if out is not total:
                np.copyto(out[start : start + BLOCK], part, casting="same_kind")
        return out


class InOrder:
    """Feeds an accumulator in order of client name, whatever the order of arrival.

    An update that comes early waits: in memory up to `limit` bytes, beyond that in a file under `spool`.
    Each client is added or skipped once.
    """

    def __init__(
        self, accumulator: Accumulator, names: Sequence[str], spool: Path | None = None, limit: int = 1 << 28
    ) -> None:
        self._accumulator, self._spool, self._limit = accumulator, spool, limit
        self._any_order = bool(getattr(accumulator, "any_order", False))
        self._turns = {name: turn for turn, name in enumerate(sorted(names))}
        self._waiting: dict[int, Update | Path | None] = {}
        self._next = self._held = 0

    def add(self, update: Update) -> None:
        """Count this update when its turn comes."""
        turn = self._turns[update.client]
        if turn < self._next or turn in self._waiting:
            raise ValueError(f"{update.client} has had its turn")
        if turn == self._next:
            self._count(turn, update)
        elif self._any_order:
            self._accumulator.add(turn, update)
            self._waiting[turn] = None
        else:
            self._waiting[turn] = self._keep(update)
        self._drain()

    def skip(self, name: str) -> None:
        """This client contributes nothing in this round, unless it was added already."""
        turn = self._turns.get(name, -1)
        if turn >= self._next and turn not in self._waiting:
            self._waiting[turn] = None
            self._drain()

    def result(self) -> dict[str, Vector]:
        """The reduction of all that came; clients not heard of contribute nothing."""
        self._skip_the_rest()
        return self._accumulator.result()

    def refused(self) -> dict[str, str]:
        """By client, why its update does not count after all, now that all are there."""
        self._skip_the_rest()
        found: dict[str, str] = getattr(self._accumulator, "refused", dict)()
        return found

    def _skip_the_rest(self) -> None:
        for name in list(self._turns)[self._next :]:
            self.skip(name)

    def _keep(self, update: Update) -> Update | Path:
        size = nbytes(update.vectors)
        if self._spool is not None and self._held + size > self._limit:
            path = self._spool / f"{update.client}.update"
            write_atomic(path, encode(update))
            return path
        self._held += size
        return replace(update, vectors={k: v.copy() for k, v in update.vectors.items()})

    def _drain(self) -> None:
        while self._next in self._waiting:
            item = self._waiting.pop(self._next)
            if isinstance(item, Path):
                message = decode(item.read_bytes())
                assert isinstance(message, Update)
                item.unlink()
                item = message
            elif item is not None:
                self._held -= nbytes(item.vectors)
            self._count(self._next, item)

    def _count(self, turn: int, update: Update | None) -> None:
        if update is not None:
            self._accumulator.add(turn, update)
        self._next = turn + 1
