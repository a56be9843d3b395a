"""Fixed-point values that add exactly: one grid for all sites, stochastic rounding, and the way back to a mean.

level = floor(L (w x + R) / 2R + u),   u uniform in [0, 1):  E[level] lies on w x, so the sum is unbiased
sum of w x = (2 * sum of levels - K L) R / L
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import ConfigError, DataError, LayoutError
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.settings import positive, whole
from polypfed.privacy.errors import FrameRefused
from polypfed.privacy.slots import Integers, Slots

_BLOCK = 1 << 16
_CHECKS = 4
_PEAK_BITS, _PEAK_UNIT = 36, 1 << 12  # (largest value / bound)**2 from 1/64 squared to 4096 squared


@dataclass(frozen=True)
class Grid:
    """The common grid: `sizes[s]` values of section s lie in [-bounds[s], bounds[s]].

    One section suffices; one per tensor costs no bytes and suits tensors of different scale better. All sites of
    a round must use the same grid, else their integers do not add. Bounds are rounded to float32, as states keep them.

    Raises:
        ConfigError: a bound is no number above 0, or there are not as many bounds as sizes.
    """

    bounds: tuple[float, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.bounds) != len(self.sizes):
            raise ConfigError(f"{len(self.bounds)} bounds for {len(self.sizes)} sections", where="bounds")
        for bound in self.bounds:
            positive(bound=np.float32(bound))
        object.__setattr__(self, "bounds", tuple(float(np.float32(b)) for b in self.bounds))

    @classmethod
    def flat(cls, bound: float, length: int) -> "Grid":
        """One bound for all values."""
        return cls((float(bound),), (length,))

    @classmethod
    def of_model(cls, spec: ModelSpec, x: Vector, share: float = 0.05, floor: float = 1e-3) -> "Grid":
        """One section per tensor for a first round: `share` of the tensor's largest value, at least `floor`.

        The initial model is known to all sites, so all get the same grid; later ones follow the peaks.
        """
        views = spec.views(x).values()
        sections = [(max(share * float(np.abs(v).max(initial=0.0)), floor), v.size) for v in views if v.size]
        return cls(tuple(bound for bound, _ in sections), tuple(size for _, size in sections))

    def to_json(self) -> dict[str, Any]:
        """The grid as JSON values."""
        return {"bounds": list(self.bounds), "sizes": list(self.sizes)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Grid":
        """The inverse of `to_json`."""
        return cls(tuple(value["bounds"]), tuple(value["sizes"]))

    @property
    def length(self) -> int:
        """Values in all sections."""
        return sum(self.sizes)

    def pieces(self) -> list[tuple[int, slice]]:
        """(section, slice) blocks that fit the cache."""
        found, start = [], 0
        for section, size in enumerate(self.sizes):
            stop = start + size
            found += [(section, slice(a, min(a + _BLOCK, stop))) for a in range(start, stop, _BLOCK)]
            start = stop
        return found

    def following(self, peaks: Sequence[float], factor: float = 2.0) -> "Grid":
        """The grid of the next round: factor * what `Decoded.peaks` says of each section.

        A section that nobody moved keeps its bound; none shrinks by more than half, as a site with larger values may
        only have missed a round. All who hold the sum get the same grid.
        """
        bounds = (max(factor * p, bound / 2) if p > 0 else bound for p, bound in zip(peaks, self.bounds, strict=True))
        return Grid(tuple(bounds), self.sizes)


@dataclass(frozen=True)
class Encoded:
    """One site's values as slots; `saturated` of them lay outside the grid, `residual` is what was lost, float32."""

    slots: Integers
    saturated: int
    residual: Vector | None


@dataclass(frozen=True)
class Decoded:
    """The mean of `count` sites, float32; `weight` is the sum of their examples, or `count` under uniform weights.

    `peaks`: per section, the root mean square over the sites of the largest weighted value each had to send.
    """

    mean: Vector
    weight: int
    count: int
    peaks: tuple[float, ...]


@dataclass(frozen=True)
class Codec:
    """Vectors of one site to slots, sums of slots to a mean.

    Behind the values ride some lanes more: a one per site, so that the sum knows how many sites are in it; four digits
    of a digest of the grid, so that sites with different grids are found out; the digits of the number of examples, so
    that the total weight is an exact integer and no site's number is seen; and for each section the square of its
    largest value, so that the next grid suits what the sites send and not only their mean, which may be far smaller.

    Args:
        slots: lanes and modulus.
        grid: common bounds.
        cap: the largest number of examples of a site; values are scaled by n / cap. None: uniform weights.

    Examples:
        >>> codec = Codec(Slots(1 << 32, 1 << 32, 1, sites=2), Grid.flat(1.0, 3), cap=10)
        >>> draw = np.random.default_rng(0)
        >>> a = codec.encode(np.float32([0.5, 0.0, -1.0]), 10, draw).slots
        >>> b = codec.encode(np.float32([-0.5, 0.0, 1.0]), 10, draw).slots
        >>> codec.decode(a + b, expect=2)
        Decoded(mean=array([0., 0., 0.], dtype=float32), weight=20, count=2, peaks=(1.0,))
    """

    slots: Slots
    grid: Grid
    cap: int | None = None

    def __post_init__(self) -> None:
        if self.cap is not None:
            whole("cap", self.cap, 1, 1 << 40)

    @property
    def values(self) -> int:
        """Lanes in use: the vector, the count, the digest of the grid, the weight, the peaks."""
        return self.grid.length + 1 + _CHECKS + self._digits(self._weight_bits) + self._peak_digits

    @property
    def size(self) -> int:
        """Slots of one message."""
        return self.slots.count(self.values)

    @property
    def _weight_bits(self) -> int:
        return 0 if self.cap is None else self.cap.bit_length()

    @property
    def _peak_digits(self) -> int:
        return len(self.grid.sizes) * self._digits(_PEAK_BITS)

    def _digits(self, bits: int) -> int:
        return -(-bits // self._digit_bits)

    @property
    def _digit_bits(self) -> int:
        return (self.slots.levels + 1).bit_length() - 1

    def encode(
        self, vector: Vector, weight: int, generator: np.random.Generator, residual: Vector | None = None
    ) -> Encoded:
        """One site's vector, float32 (grid.length,), and its number of examples.

        Args:
            generator: of the rounding; from (run seed, round, site) it makes a run repeatable.
            residual: what earlier rounds lost, float32 (grid.length,), weighted as the vector is; None keeps none.

        Raises:
            DataError: a value is not finite, or the weight is above `cap`.
            LayoutError: the vector has another length.
        """
        if vector.shape != (self.grid.length,):
            raise LayoutError(f"the vector has shape {vector.shape}, not ({self.grid.length},)")
        if self.cap is not None and not 0 <= weight <= self.cap:
            raise DataError(f"{weight} examples, the cap is {self.cap}", where="weight", remedy="Raise the cap for all")
        levels = np.zeros(self.values, np.uint32)
        lost = np.empty_like(vector) if residual is not None else None
        factor = 1.0 if self.cap is None else weight / self.cap
        saturated, peaks = 0, [0.0] * len(self.grid.sizes)
        for section, at in self.grid.pieces():
            bound = self.grid.bounds[section]
            exact = vector[at].astype(np.float64) * factor
            if residual is not None:
                exact += residual[at]
            peak = float(max(exact.max(), -exact.min())) / bound
            levels[at], outside = _round(exact, bound, self.slots.levels, generator)
            saturated, peaks[section] = saturated + outside, max(peaks[section], peak)
            if lost is not None:
                lost[at] = exact - _value(levels[at], 1, bound, self.slots.levels)
        squares = [min(math.ceil(_PEAK_UNIT * p * p), (1 << _PEAK_BITS) - 1) for p in peaks]
        trailer = [1, *self._check, *self._split(weight, self._weight_bits)]
        levels[self.grid.length :] = trailer + [d for square in squares for d in self._split(square, _PEAK_BITS)]
        return Encoded(self.slots.pack(levels), saturated, lost)

    def decode(self, total: Integers, expect: int | None = None) -> Decoded:
        """The mean behind a sum of slots.

        Args:
            expect: how many sites should be in it, by whoever added them.

        Raises:
            FrameRefused: count: the sum holds another number of sites, or none, or more than it admits;
                wrong-parameters: the sites had different grids.
            LayoutError: the sum has another length, or cannot be a sum of packed values.
        """
        sums = self.slots.unpack(total, self.values)
        behind = 1 + _CHECKS + self._digits(self._weight_bits)
        ones, checks, digits, rest = np.split(sums[self.grid.length :], [1, 1 + _CHECKS, behind])
        count = int(ones[0])
        if not 0 < count <= self.slots.sites or (expect is not None and count != expect):
            raise FrameRefused("count", f"the sum holds {count} sites, not {expect or f'1 to {self.slots.sites}'}")
        if checks.tolist() != [count * digit for digit in self._check]:
            raise FrameRefused("wrong-parameters", "the sites did not use one and the same grid")
        weight = count if self.cap is None else self._join(digits)
        divisor = count if self.cap is None else weight / self.cap
        mean = np.zeros(self.grid.length, np.float32)
        if divisor:
            for section, at in self.grid.pieces():
                mean[at] = _value(sums[at], count, self.grid.bounds[section], self.slots.levels) / divisor
        squares = [self._join(part) for part in rest.reshape(len(self.grid.sizes), -1)]
        peaks = (b * math.sqrt(s / (count * _PEAK_UNIT)) for b, s in zip(self.grid.bounds, squares, strict=True))
        return Decoded(mean, weight, count, tuple(peaks))

    @cached_property
    def _check(self) -> list[int]:
        text = repr((self.grid.bounds, self.grid.sizes, self.cap)).encode()
        digest = int.from_bytes(hashlib.sha256(text).digest(), "little")
        return [(digest >> 64 * d & (1 << 64) - 1) % (self.slots.levels + 1) for d in range(_CHECKS)]

    def _split(self, value: int, bits: int) -> list[int]:
        mask = (1 << self._digit_bits) - 1
        return [value >> (self._digit_bits * d) & mask for d in range(self._digits(bits))]

    def _join(self, digits: NDArray[np.uint32]) -> int:
        return sum(int(digit) << (self._digit_bits * d) for d, digit in enumerate(digits))


def _round(
    exact: NDArray[np.float64], bound: float, levels: int, generator: np.random.Generator
) -> tuple[NDArray[np.float64], int]:
    """Stochastically rounded levels, and how many values were outside [-bound, bound]."""
    scaled = exact * (levels / (2 * bound))
    scaled += levels / 2  # zero lies on a level exactly
    if not np.isfinite(scaled.sum()):
        raise DataError("a value is not finite", where="delta")
    slack = 1e-9 * levels
    outside = np.count_nonzero(scaled < -slack) + np.count_nonzero(scaled > levels + slack)
    scaled += generator.random(exact.size, np.float32)
    return np.clip(np.floor(scaled, out=scaled), 0, levels, out=scaled), int(outside)


def _value(levels: NDArray[np.uint32], count: int, bound: float, most: int) -> NDArray[np.float64]:
    """The sum that `levels` stand for; integers are subtracted first, so a sum of zeros is exactly zero."""
    centred = levels.astype(np.float64)
    centred *= 2
    centred -= count * most
    centred *= bound / most
    return centred
