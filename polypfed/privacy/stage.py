"""Stages: what is done to a site's vector before it leaves, and the orders of them that keep their promises.

Legal order: clip -> noise -> compress (leave values out, then quantise) -> encrypt and/or mask.
A stage transforms floats at the site (`forward`) and the plain mean after reduction (`backward`). Encrypt and Mask are
declared here and carried out on the quantised slots by `he`, `secagg` and `masked`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from polypfed.core.errors import ConfigError, StateError
from polypfed.core.model import Vector
from polypfed.core.seeds import generator
from polypfed.core.settings import positive, whole
from polypfed.privacy import compress, dp
from polypfed.privacy.masks import ring_slots
from polypfed.privacy.params import HEParams, Profile
from polypfed.privacy.quantise import Codec, Grid
from polypfed.privacy.slots import Slots, open_slots

Kind = Literal["clip", "noise", "compress", "encrypt", "mask"]
State = Mapping[str, Vector]
"""What a site keeps for a stage between rounds; it is settled with the client's own state."""

_NOTHING: State = MappingProxyType({})


@dataclass(frozen=True)
class At:
    """Where in a run a stage is applied.

    Attributes:
        seed: the run's; round: the server round.
        site: the site's name; "" for whoever holds the mean.
        reference: the last released aggregate of the same length, known to all; None in the first round.
        norm: the clipping norm of the round where it moves; None where it is fixed.
        simulate: noise from the seed instead of the operating system, for simulations only.
        count, planned: sites in the mean, sites planned.
    """

    seed: int
    round: int
    site: str = ""
    reference: Vector | None = None
    norm: float | None = None
    simulate: bool = False
    count: int = 1
    planned: int = 1

    def noise(self) -> np.random.Generator | None:
        """The generator for `dp`: None means the operating system's randomness."""
        return generator(self.seed, "noise", self.round, self.site) if self.simulate else None


@runtime_checkable
class Stage(Protocol):
    """One step. `check_stage` of the tests holds for every one.

    Attributes:
        kind: its place in the order.
        sums: after it the server has sums only, never single updates.
        linear: the outputs of sites can be added; False where each site chooses its own layout.
        least: sites below which it protects nobody.
    """

    kind: ClassVar[Kind]
    sums: ClassVar[bool]
    least: ClassVar[int]

    @property
    def linear(self) -> bool:
        """Whether the sum of what it makes is what it makes of the sum."""

    def size(self, length: int) -> int:
        """Values that go on of so many."""

    def forward(self, vector: Vector, state: State, at: At) -> tuple[Vector, State]:
        """At the site: the vector that goes on, and the state after this round. The input stays as it is."""

    def backward(self, mean: Vector, at: At, length: int) -> Vector:
        """Where the plain mean is: undo the layout, (length,), or add the noise of a trusted server."""


@dataclass(frozen=True)
class _Step:
    """What most stages are: linear, no sums, nothing to undo."""

    sums: ClassVar[bool] = False
    least: ClassVar[int] = 1

    @property
    def linear(self) -> bool:
        return True

    def size(self, length: int) -> int:
        return length

    def forward(self, vector: Vector, state: State, at: At) -> tuple[Vector, State]:
        return vector, _NOTHING

    def backward(self, mean: Vector, at: At, length: int) -> Vector:
        return mean


@dataclass(frozen=True)
class Clip(_Step):
    """One flat L2 norm over everything that is sent; `at.norm` replaces `norm` where it moves."""

    kind: ClassVar[Kind] = "clip"
    norm: float = 1.0
    adaptive: dp.AdaptiveNorm | None = None

    def __post_init__(self) -> None:
        positive(norm=self.norm)

    def bound(self, at: At) -> float:
        """C of this round.

        Raises:
            StateError: it moves, and nobody said where it is.
        """
        if self.adaptive is not None and at.norm is None:
            raise StateError("the clipping norm of this round is not known", where=at.site)
        return self.norm if at.norm is None else at.norm

    def forward(self, vector: Vector, state: State, at: At) -> tuple[Vector, State]:
        """See Stage."""
        out: Any = dp.clip({"": vector}, self.bound(at)).vectors[""]
        return out, _NOTHING


@dataclass(frozen=True)
class Noise(_Step):
    """Gaussian noise of `multiplier` times the clipping norm: on each site's vector, or once on the sum by the server.

    At the site, each update is private by itself, whatever comes behind is post-processing, and the noise of the mean
    is z C / sqrt(m). At the server, the mean has z C / m, and the server sees clean updates.
    """

    kind: ClassVar[Kind] = "noise"
    multiplier: float = 1.0
    where: Literal["site", "server"] = "server"
    clip: Clip = field(default_factory=Clip)

    def __post_init__(self) -> None:
        positive(multiplier=self.multiplier)
        if self.where not in ("site", "server"):
            raise ConfigError(f"{self.where!r} is not site or server", where="noise")

    @property
    def effective(self) -> float:
        """z of the vector: larger than `multiplier` where the clipping norm is learnt as well."""
        return self.multiplier if self.clip.adaptive is None else self.clip.adaptive.multiplier_of_sum

    def forward(self, vector: Vector, state: State, at: At) -> tuple[Vector, State]:
        """See Stage."""
        if self.where == "server":
            return vector, _NOTHING
        return dp.noised(vector, self.effective * self.clip.bound(at), at.noise()), _NOTHING

    def backward(self, mean: Vector, at: At, length: int) -> Vector:
        """See Stage."""
        if self.where == "site":
            return mean
        return dp.noised_mean(mean, at.count, at.planned, self.effective, self.clip.bound(at), at.noise())


@dataclass(frozen=True)
class RandomK(_Step):
    """Only a share of the values, the same random ones at every site; the rest is kept as residual.

    Args:
        share: of the values that are chosen among.
        dense: start and stop of a section that is always sent whole, behind the chosen values. The plan of a run puts
            BatchNorm's statistics there: they are levels, and one left out would belong to another round's weights.
    """

    kind: ClassVar[Kind] = "compress"
    share: float = 0.1
    dense: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        compress.kept(1, self.share)

    def size(self, length: int) -> int:
        """See Stage."""
        whole = self.dense[1] - self.dense[0]
        return compress.kept(length - whole, self.share) + whole

    def indices(self, length: int, at: At) -> compress.Indices:
        """Of this round, in the order in which they are sent."""
        return self._and_dense(compress.random_k(len(self._rest(length)), self.share, at.seed, at.round), length)

    def _rest(self, length: int) -> compress.Indices:
        """What is chosen among."""
        return np.delete(np.arange(length), slice(*self.dense))

    def _and_dense(self, chosen: compress.Indices, length: int) -> compress.Indices:
        return np.concatenate([self._rest(length)[chosen], np.arange(*self.dense)])

    def forward(self, vector: Vector, state: State, at: At) -> tuple[Vector, State]:
        """See Stage."""
        out = compress.gather(vector, state.get("residual"), self.indices(vector.size, at))
        return out.values, {"residual": out.residual}

    def backward(self, mean: Vector, at: At, length: int) -> Vector:
        """See Stage."""
        return compress.scatter(mean, self.indices(length, at), length)


@dataclass(frozen=True)
class TopK(RandomK):
    """The values where the last released aggregate was largest, and some random ones; all random in the first round.

    Args:
        explore: the part of them drawn at random.
        common: False lets each site choose by its own update: no sums then, and the choice itself tells of its data.
    """

    explore: float = 0.25
    common: bool = True

    @property
    def linear(self) -> bool:
        """See Stage."""
        return self.common

    def size(self, length: int) -> int:
        """See Stage."""
        return super().size(length) if self.common else length

    def indices(self, length: int, at: At) -> compress.Indices:
        if at.reference is None or at.reference.shape != (length,):
            return super().indices(length, at)
        return self._largest(at.reference, at, self.explore)

    def _largest(self, reference: Vector, at: At, explore: float) -> compress.Indices:
        rest = reference[self._rest(reference.size)]
        return self._and_dense(compress.top_k(rest, self.share, at.seed, at.round, explore), reference.size)

    def forward(self, vector: Vector, state: State, at: At) -> tuple[Vector, State]:
        """See Stage."""
        if self.common:
            return super().forward(vector, state, at)
        residual = state.get("residual")
        full = vector if residual is None else vector + residual
        own = compress.gather(full, None, self._largest(full, at, explore=0.0))
        return full - own.residual, {"residual": own.residual}

    def backward(self, mean: Vector, at: At, length: int) -> Vector:
        """See Stage."""
        return super().backward(mean, at, length) if self.common else mean


@dataclass(frozen=True)
class Quantise(_Step):
    """Fixed-point values on a common grid, so that sums are exact integers.

    Without Encrypt or Mask behind it they travel in clear and entropy-coded, both ways: see `federation.packed`.

    Args:
        bits: of a value, at least.
        bound: of the first round's values, as a share of the largest weight of their tensor; None: what suits the
            number of levels, see `Plan.first_grid`. Later ones follow from what the sites say of it inside the sum.
        cap: the most examples a site may have, near the largest number there is; None weighs all sites alike.
        feedback: keep what rounding and saturation lost for the next round.
    """

    kind: ClassVar[Kind] = "compress"
    bits: float = 8.0
    bound: float | None = None
    cap: int | None = None
    feedback: bool = True

    def __post_init__(self) -> None:
        positive(bits=self.bits, bound=1.0 if self.bound is None else self.bound)
        if self.cap is not None:
            whole("cap", self.cap, 1, 1 << 40)


@dataclass(frozen=True)
class Encrypt(_Step):
    """BFV under a key that the sites share and the server does not have.

    Args:
        profile: "std" (classical 128 bit), "pq128" (post-quantum 128) or "tc256" (classical 256).
        minimum: a sum of fewer sites is not decrypted, as it would show too much of each.
        snapshot: every so many rounds one site hands in the model, sealed for the others, for those who come late.
    """

    kind: ClassVar[Kind] = "encrypt"
    sums: ClassVar[bool] = True
    least: ClassVar[int] = 2
    profile: Profile = "std"
    minimum: int = 2
    snapshot: int = 10

    def __post_init__(self) -> None:
        whole("minimum", self.minimum, 2)
        whole("snapshot", self.snapshot, 1)
        HEParams(self.profile, 2, 1)


@dataclass(frozen=True)
class Mask(_Step):
    """Pairwise masks; `threshold` sites must survive a round, more than half of them (None: two thirds)."""

    kind: ClassVar[Kind] = "mask"
    sums: ClassVar[bool] = True
    least: ClassVar[int] = 3
    threshold: int | None = None

    def of(self, sites: int) -> int:
        """The threshold for so many sites."""
        return max(sites // 2 + 1, -(-2 * sites // 3)) if self.threshold is None else self.threshold


def slots_for(
    quantise: Quantise, mask: Mask | None, encrypt: Encrypt | None, sites: int
) -> tuple[Slots, HEParams | None]:
    """The lanes for so many sites: inside ciphertexts, 16- or 32-bit integers under masks, or one value a slot."""
    if encrypt is not None:
        params = HEParams.for_sites(max(2, sites), bits=quantise.bits, profile=encrypt.profile)
        return params.slots, params
    return ring_slots(sites, quantise.bits) if mask else open_slots(sites, quantise.bits), None


def codec_for(quantise: Quantise, slots: Slots, length: int, grid: Grid | None = None) -> Codec:
    """The codec of a round; grid: that of the round before, moved by `Grid.following`."""
    return Codec(slots, grid or Grid.flat(quantise.bound or 1.0, length), quantise.cap)
