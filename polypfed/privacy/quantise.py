"""Fixed-point values that add exactly: one grid for all sites, stochastic rounding, and the way back to a mean.

level = floor(L (w x + R) / 2R + u),   u uniform in [0, 1):  E[level] lies on w x, so the sum is unbiased
sum of w x = (2 * sum of levels - K L) R / L
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
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
_SMALL, _FINE = 1024, 4096  # sections of at most so many values have at least so many levels
_SPAN_BITS, _SPAN_UNIT = 36, 1 << 12  # (span / bound)**2 from 1/64 squared to 4096 squared


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

        The initial model is known to all sites, so all get the same grid; later ones follow the spans.
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

    def following(self, spans: Sequence[float], factor: float = 2.0) -> "Grid":
        """The grid of the next round: factor * what `Decoded.spans` says of each section.

        A section that nobody moved keeps its bound; none shrinks to less than a sixteenth, as a site with larger values
        may only have missed a round: they would then come a round late. All who hold the sum get the same grid.
        """
        bounds = (max(factor * s, bound / 16) if s > 0 else bound for s, bound in zip(spans, self.bounds, strict=True))
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

    `spans`: per section, the root mean square over the sites of the span each had to send, see `Codec`.
    """

    mean: Vector
    weight: int
    count: int
    spans: tuple[float, ...]


@dataclass(frozen=True)
class Codec:
    """Vectors of one site to slots, sums of slots to a mean.

    Behind the values ride some lanes more: a one per site, so that the sum knows how many sites are in it; four digits
    of a digest of the grid, so that sites with different grids are found out; the digits of the number of examples, so
    that the total weight is an exact integer and no site's number is seen; and for each section the square of its
    span, so that the next grid suits what the sites send and not only their mean, which may be far smaller. The span is
    the section's largest weighted value, or sqrt(levels + 1) / 2 times the root mean square of them if that is less:
    few levels are better spent on the many small values than on the one largest, which the residual brings later.

    Small sections (biases, BatchNorm's weights and statistics) matter more than their bytes: where a lane has fewer
    than 4096 levels, each of their values takes several lanes, as digits to the base levels + 1.

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
        Decoded(mean=array([0., 0., 0.], dtype=float32), weight=20, count=2, spans=(1.0,))
    """

    slots: Slots
    grid: Grid
    cap: int | None = None

    def __post_init__(self) -> None:
        if self.cap is not None:
            whole("cap", self.cap, 1, 1 << 40)

    @property
    def values(self) -> int:
        """Lanes in use: the vector, its further digits, the count, the digest of the grid, the weight, the spans."""
        return self._behind + 1 + _CHECKS + self._digits(self._weight_bits) + self._span_digits

    @property
    def size(self) -> int:
        """Slots of one message."""
        return self.slots.count(self.values)

    def room(self, size: int) -> float:
        """The bound that suits so many values, as a multiple of their root mean square."""
        return math.sqrt((self.slots.levels + 1) ** self._lanes(size))

    def _lanes(self, size: int) -> int:
        """How many lanes a value of a section of this size takes."""
        enough = (digits for digits in range(1, 10) if (self.slots.levels + 1) ** digits >= _FINE)
        return next(enough) if size <= _SMALL else 1

    @cached_property
    def _lanes_each(self) -> tuple[int, ...]:
        return tuple(self._lanes(size) for size in self.grid.sizes)

    def _most(self, section: int) -> int:
        """The highest level of a section; even as `Slots.levels` is, so zero lies on the grid."""
        return int((self.slots.levels + 1) ** self._lanes_each[section] - 1)

    @cached_property
    def _behind(self) -> int:
        """Where the trailer begins."""
        return sum(size * lanes for size, lanes in zip(self.grid.sizes, self._lanes_each, strict=True))

    @cached_property
    def _further(self) -> tuple[int, ...]:
        """Per section: where the second digits of its values begin, those of the first value first."""
        extra = [size * (lanes - 1) for size, lanes in zip(self.grid.sizes, self._lanes_each, strict=True)]
        return tuple(accumulate(extra, initial=self.grid.length))

    def _digits_of(self, section: int, at: slice) -> list[slice]:
        """Lanes of the values at `at`, lowest digit first."""
        start, size = self._further[section], at.stop - at.start
        more = range(self._lanes_each[section] - 1)
        return [at, *(slice(start + d * size, start + (d + 1) * size) for d in more)]

    @property
    def _weight_bits(self) -> int:
        return 0 if self.cap is None else self.cap.bit_length()

    @property
    def _span_digits(self) -> int:
        return len(self.grid.sizes) * self._digits(_SPAN_BITS)

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
        saturated, peaks, energies = 0, [0.0] * len(self.grid.sizes), [0.0] * len(self.grid.sizes)
        for section, at in self.grid.pieces():
            bound = self.grid.bounds[section]
            exact = vector[at].astype(np.float64) * factor
            if residual is not None:
                exact += residual[at]
            peak = float(max(exact.max(), -exact.min())) / bound
            whole, outside = _round(exact, bound, self._most(section), generator)
            saturated, peaks[section] = saturated + outside, max(peaks[section], peak)
            energies[section] += float(np.square(exact / bound).sum())
            if lost is not None:
                lost[at] = exact - _value(whole, 1, bound, self._most(section))
            *lower, last = self._digits_of(section, at)
            for lanes in lower:
                whole, levels[lanes] = np.divmod(whole, self.slots.levels + 1)
            levels[last] = whole
        squares = [
            self._square(section, peak, energy)
            for section, (peak, energy) in enumerate(zip(peaks, energies, strict=True))
        ]
        trailer = [1, *self._check, *self._split(weight, self._weight_bits)]
        levels[self._behind :] = trailer + [d for square in squares for d in self._split(square, _SPAN_BITS)]
        return Encoded(self.slots.pack(levels), saturated, lost)

    def _square(self, section: int, peak: float, energy: float) -> int:
        """The square of a section's span, in units that fit its digits."""
        size = max(self.grid.sizes[section], 1)
        square = min(peak * peak, (self.room(size) / 2) ** 2 * energy / size)
        return min(math.ceil(_SPAN_UNIT * square), (1 << _SPAN_BITS) - 1)

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
        ones, checks, examples, rest = np.split(sums[self._behind :], [1, 1 + _CHECKS, behind])
        count = int(ones[0])
        if not 0 < count <= self.slots.sites or (expect is not None and count != expect):
            raise FrameRefused("count", f"the sum holds {count} sites, not {expect or f'1 to {self.slots.sites}'}")
        if checks.tolist() != [count * digit for digit in self._check]:
            raise FrameRefused("wrong-parameters", "the sites did not use one and the same grid")
        weight = count if self.cap is None else self._join(examples)
        divisor = count if self.cap is None else weight / self.cap
        mean = np.zeros(self.grid.length, np.float32)
        if divisor:
            for section, at in self.grid.pieces():
                *lower, last = self._digits_of(section, at)
                whole = sums[last].astype(np.float64)
                for lanes in reversed(lower):
                    whole = whole * (self.slots.levels + 1) + sums[lanes]
                mean[at] = _value(whole, count, self.grid.bounds[section], self._most(section)) / divisor
        squares = [self._join(part) for part in rest.reshape(len(self.grid.sizes), -1)]
        spans = (b * math.sqrt(s / (count * _SPAN_UNIT)) for b, s in zip(self.grid.bounds, squares, strict=True))
        return Decoded(mean, weight, count, tuple(spans))

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


def _value(levels: NDArray[np.float64], count: int, bound: float, most: int) -> NDArray[np.float64]:
    """The sum that `levels` stand for; integers are subtracted first, so a sum of zeros is exactly zero."""
    centred = levels * 2
    centred -= count * most
    centred *= bound / most
    return centred
