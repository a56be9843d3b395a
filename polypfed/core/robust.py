"""Reducers that withstand some bad updates. They act on deltas, never on models, and see every update by itself.

Examples are the sender's to claim, so unless told otherwise all updates count the same; those without examples do not
count. What beside the delta an update holds (BatchNorm statistics, extras) is reduced by the same rule, but where a
rule goes by lengths: statistics of different channels have different scales, so length says nothing of them, and each
has a median of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from polypfed.core import camps, distances, ranks
from polypfed.core.errors import ConfigError
from polypfed.core.messages import Update
from polypfed.core.model import Vector
from polypfed.core.reduce import BUFFERS, Accumulator, Mean, Needs
from polypfed.core.settings import fraction, positive, whole

Weights = Literal["examples", "uniform"] | Mapping[str, float]


@dataclass(frozen=True)
class Median:
    """The median of each value: with m updates it bears fewer than m/2 bad ones.

    Source: Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, 2018, Alg. 1 option I.
    """

    needs: ClassVar[Needs] = "updates"
    least: ClassVar[int] = 1

    def start(self, lengths: Mapping[str, int]) -> "Held":
        """Room for the updates."""
        return Held(lengths, _each(ranks.median))


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each value without the k smallest and the k largest: it bears k bad updates.

    Args:
        share: k = floor(share * m) of the m updates that arrived. With fewer than 1/share of them nothing is dropped,
            and this is the even mean.

    Source: Yin et al., 2018, Alg. 1 option II.

    Raises:
        ConfigError: share is not from 0 to below 0.5.
    """

    share: float = 0.2
    needs: ClassVar[Needs] = "updates"
    least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        fraction(share=self.share)
        if self.share >= 0.5:
            raise ConfigError(f"{self.share!r} from both ends leaves nothing", where="share", remedy="Give below 0.5")

    def start(self, lengths: Mapping[str, int]) -> "Held":
        """Room for the updates."""
        return Held(lengths, _each(lambda rows: ranks.trimmed_mean(rows, int(self.share * len(rows)))))


@dataclass(frozen=True)
class Krum:
    """The one update whose neighbours are nearest: with m updates it bears f bad ones if 2f + 2 < m.

        s_i = sum of the m - f - 2 smallest |D_i - D_j|^2, j != i;   the update with the least s_i

    Distances are those of the deltas; whatever else the chosen update holds is believed with it. Ties go to the first
    name.

    Args:
        f: how many bad updates to withstand.

    Source: Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, 2017, section 4.

    Raises:
        ConfigError: f is no whole number of at least 0.
    """

    f: int
    needs: ClassVar[Needs] = "updates"

    def __post_init__(self) -> None:
        whole("f", self.f, 0)

    @property
    def least(self) -> int:
        """2f + 3 updates."""
        return 2 * self.f + 3

    def start(self, lengths: Mapping[str, int]) -> "Held":
        """Room for the updates."""
        return Held(lengths, lambda got: dict(got[self.ranked(got)[0]].vectors))

    def ranked(self, got: Sequence[Update]) -> list[int]:
        """Indices of the updates, the least score first.

        Raises:
            ConfigError: they are fewer than 2f + 3.
        """
        if len(got) < self.least:
            raise ConfigError(f"{len(got)} updates, f = {self.f} needs {self.least}", where="reducer")
        squares = distances.pairwise([update.vectors["delta"] for update in got])
        np.fill_diagonal(squares, np.inf)  # an update is no neighbour of itself
        scores = np.sort(squares, axis=1)[:, : len(got) - self.f - 2].sum(axis=1)
        return [int(i) for i in np.argsort(scores, kind="stable")]


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The even mean of the q updates that Krum likes best.

    Args:
        f: how many bad updates to withstand.
        q: how many to take; None means m - f - 2. With q = 1 it is Krum.

    Raises:
        ConfigError: f or q is no whole number in range.
    """

    q: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.q is not None:
            whole("q", self.q, 1)

    @property
    def least(self) -> int:
        """2f + 3 updates, and q + f: beyond the first m - f a bad one is certain to be among those taken."""
        return max(super().least, (self.q or 0) + self.f)

    def start(self, lengths: Mapping[str, int]) -> "Held":
        """Room for the updates."""
        return Held(lengths, self._mean)

    def _mean(self, got: Sequence[Update]) -> dict[str, Vector]:
        picked = sorted(self.ranked(got)[: self.q or len(got) - self.f - 2])
        return mean([replace(got[i], weight=1) for i in picked], Mean("uniform"))


@dataclass(frozen=True)
class GeometricMedian:
    """The point whose distances to the updates add up to least, nearly: it bears fewer than m/2 bad updates.

        z = the median of each value ;   T times  b_i = w_i / max(nu, |D_i - z|) ,  z <- sum b_i D_i / sum b_i

    Args:
        weights: "uniform", by name, or "examples": those that are claimed, up to their median.
        T: steps of the iteration.
        nu: distances below it count as it.

    Differs: the paper starts at the mean, from where three steps leave 3 % of the way to go that two of nine updates
    have pulled it, however far that is. Its senders compute their own b_i, so that sums suffice; here nobody judges
    himself. Extras have a geometric median of their own, BatchNorm statistics the median of each value.

    Source: Pillutla et al., Robust Aggregation for Federated Learning, 2022, Alg. 2.

    Raises:
        ConfigError: a setting is out of range.
    """

    weights: Weights = "uniform"
    T: int = 3
    nu: float = 1e-6
    needs: ClassVar[Needs] = "updates"
    least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        Mean(self.weights)
        whole("T", self.T, 1)
        positive(nu=self.nu)

    def weight(self, client: str, examples: int) -> float:
        """As Mean's."""
        return Mean(self.weights).weight(client, examples)

    def start(self, lengths: Mapping[str, int]) -> "Held":
        """Room for the updates."""
        return Held(lengths, self._reduce)

    def _reduce(self, got: Sequence[Update]) -> dict[str, Vector]:
        weights = np.array([self.weight(update.client, update.weight) for update in believed(got)])
        return {name: _values(got, name, lambda rows: self._median(rows, weights)) for name in got[0].vectors}

    def _median(self, rows: Sequence[Vector], weights: distances.Wide) -> Vector:
        z = ranks.median(rows)
        away = np.sqrt([distances.apart(row, z) for row in rows])
        for _ in range(self.T):
            closeness = weights / np.maximum(self.nu, away)
            z, away = distances.combined(rows, closeness / closeness.sum())
        return z


@dataclass(frozen=True)
class NormClip:
    """The mean of deltas that are shortened to a norm: a bad update counts, but no more than any other.

        D_i <- D_i * min(1, C / |D_i|) ,  n_i <- min(n_i, N) ;   then as Mean

    Args:
        norm: C. None is the median of the norms that arrived. Extras then are shortened to the median of their kind,
            BatchNorm statistics become the median of each value, and no update counts for more examples than their
            median N. A given C is about the delta alone.
        weights: as in Mean; "uniform" where the number of examples a site claims is not to be believed at all.
        refuse_opposed: leave out updates whose delta points against all others, where these agree (`camps.opposed`):
            the result is that of the others alone. Shortened, an update that is turned round still cancels another.

    With C given, sums suffice and memory is O(P); else every update is held.

    Source: Sun et al., Can You Really Backdoor Federated Learning?, 2019, section 4.

    Differs: N, without which an update that claims most of the examples would be nearly the mean; and the statistics,
    of which noise as long as the others' drives the smallest variances to 0.

    Raises:
        ConfigError: norm is not above 0, weights are none that Mean takes, or opposed updates shall be refused where
            sums suffice.
    """

    norm: float | None = None
    weights: Weights = "examples"
    refuse_opposed: bool = False
    least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        Mean(self.weights)
        if self.norm is not None:
            positive(norm=self.norm)
        if type(self.refuse_opposed) is not bool:
            raise ConfigError(f"{self.refuse_opposed!r} is not true or false", where="refuse_opposed")
        if self.norm is not None and self.refuse_opposed:
            raise ConfigError("sums show no single update", where="refuse_opposed", remedy="Leave norm out")

    @property
    def needs(self) -> Needs:
        """Sums if C is given."""
        return "updates" if self.norm is None else "sum"

    def weight(self, client: str, examples: int) -> float:
        """As Mean's."""
        return Mean(self.weights).weight(client, examples)

    def start(self, lengths: Mapping[str, int]) -> Accumulator:
        """A sum, or room for the updates."""
        if self.norm:
            return _ClippedMean(self.weights, norm=self.norm).start(lengths)
        return Held(lengths, self._reduce, self._opposed if self.refuse_opposed else None)

    def _opposed(self, got: Sequence[Update]) -> dict[str, str]:
        bad = camps.opposed([update.vectors["delta"] for update in got])
        words = f"points against the other {len(got) - len(bad)}, which agree"
        return {got[i].client: words for i in bad}

    def _reduce(self, got: Sequence[Update]) -> dict[str, Vector]:
        taken = believed(got)
        return {name: _values(taken, name, lambda rows: self._clipped(taken, rows)) for name in got[0].vectors}

    def _clipped(self, got: Sequence[Update], rows: Sequence[Vector]) -> Vector:
        limit = float(np.median([distances.norm(row) for row in rows]))
        alike = [replace(update, vectors={"delta": row}) for update, row in zip(got, rows, strict=True)]
        return mean(alike, _ClippedMean(self.weights, norm=limit))["delta"]


@dataclass(frozen=True)
class _ClippedMean(Mean):
    norm: float = 1.0

    def scale(self, update: Update) -> float:
        """min(1, C / |D|)."""
        length = distances.norm(update.vectors["delta"])
        return self.norm / length if length > self.norm else 1.0


class Held:
    """Holds a copy of every update with examples until all are there, then lets `rule` make one of them.

    Updates may come in any order: the rule gets them in order of name, and at least one.

    Args:
        judge: from all of them, whom to leave out and why; never all.
    """

    any_order = True

    def __init__(
        self,
        lengths: Mapping[str, int],
        rule: Callable[[Sequence[Update]], Mapping[str, Vector]],
        judge: Callable[[Sequence[Update]], dict[str, str]] | None = None,
    ) -> None:
        self._lengths, self._rule, self._judge, self._got = lengths, rule, judge, dict[int, Update]()
        self._refused: dict[str, str] | None = None

    def add(self, index: int, update: Update) -> None:
        """Copy the vectors named at the start."""
        if update.weight:
            vectors = {name: update.vectors[name].copy() for name in self._lengths}
            self._got[index] = replace(update, vectors=vectors)

    def refused(self) -> dict[str, str]:
        """By client, why its update is left out; nothing more may be added."""
        if self._refused is None:
            self._refused = self._judge(self._updates()) if self._judge and self._got else {}
            self._got = {i: update for i, update in self._got.items() if update.client not in self._refused}
        return self._refused

    def result(self) -> dict[str, Vector]:
        """What the rule makes of the updates; zeros if there are none."""
        self.refused()
        if not self._got:
            return {name: np.zeros(length, np.float32) for name, length in self._lengths.items()}
        return dict(self._rule(self._updates()))

    def _updates(self) -> list[Update]:
        return [self._got[index] for index in sorted(self._got)]


def believed(got: Sequence[Update]) -> list[Update]:
    """The updates, none with more examples than their median: examples are the sender's to claim."""
    most = int(np.median([update.weight for update in got]))
    return [replace(update, weight=min(update.weight, most)) for update in got]


def mean(got: Sequence[Update], rule: Mean) -> dict[str, Vector]:
    """The mean of these updates, in this order."""
    total = rule.start({name: vector.size for name, vector in got[0].vectors.items()})
    for index, update in enumerate(got):
        total.add(index, update)
    return total.result()


def _values(got: Sequence[Update], name: str, rule: Callable[[Sequence[Vector]], Vector]) -> Vector:
    """One vector of the updates by `rule`, but BatchNorm statistics by the median of each value."""
    rows = [update.vectors[name] for update in got]
    return ranks.median(rows) if name == BUFFERS else rule(rows)


def _each(rule: Callable[[Sequence[Vector]], Vector]) -> Callable[[Sequence[Update]], dict[str, Vector]]:
    """The same rule for every vector of the updates."""
    return lambda got: {name: rule([update.vectors[name] for update in got]) for name in got[0].vectors}
