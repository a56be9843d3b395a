"""Integers below a modulus that hold several fixed-point values each, so that sums over sites never carry.

slot = sum_j base**j * lane_j,   0 <= lane_j <= levels,   sites * levels < base,   base**lanes <= modulus
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import ConfigError, LayoutError
from polypfed.core.settings import whole

MOST_LANES = 16
"""Values in a slot; three levels for each of four sites take 14 lanes of 46 bits."""

Integers = NDArray[np.unsignedinteger]
"""1-D, C-contiguous, of an unsigned dtype."""


@dataclass(frozen=True)
class Slots:
    """How values of one site are packed, and how many sites a sum admits.

    Args:
        modulus: slots are added modulo this number, at most 2**62 (or 2**16, 2**32).
        base: of a lane.
        lanes: values per slot.
        sites: the largest number of sites in one sum.

    Raises:
        ConfigError: a sum of `sites` slots could wrap, or a lane has no room for a level.

    Examples:
        >>> slots = Slots(modulus=10_000, base=100, lanes=2, sites=3)
        >>> slots.levels
        32
        >>> packed = slots.pack(np.array([32, 1, 7], np.uint32))  # value i lies in lane i // 2 of slot i % 2
        >>> packed
        array([732,   1], dtype=uint16)
        >>> slots.unpack(packed * 3, 3)
        array([96,  3, 21], dtype=uint32)
    """

    modulus: int
    base: int
    lanes: int
    sites: int

    def __post_init__(self) -> None:
        whole("sites", self.sites, 1, 1 << 15)
        whole("lanes", self.lanes, 1, MOST_LANES)
        whole("modulus", self.modulus, 2, 1 << 62)
        if self.base**self.lanes > self.modulus:
            raise ConfigError(f"{self.lanes} lanes of {self.base} do not fit below {self.modulus}", where="base")
        if not 1 <= self.levels < 1 << 32:
            raise ConfigError(
                f"a lane of {self.base} has no room for {self.sites} sites",
                where="lanes",
                remedy="Use fewer lanes or fewer sites",
            )

    @property
    def levels(self) -> int:
        """L: a site sends integers 0..L. Even where possible, so that zero lies on the grid."""
        most = (self.base - 1) // self.sites
        return most - most % 2 if most > 1 else most

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest unsigned type that holds a slot."""
        bits = (self.modulus - 1).bit_length()
        return np.dtype(np.uint16 if bits <= 16 else np.uint32 if bits <= 32 else np.uint64)

    def count(self, values: int) -> int:
        """Slots for so many values."""
        return -(-values // self.lanes)

    def pack(self, values: NDArray[np.uint32]) -> Integers:
        """The values of one site, uint32 (n,) of at most `levels`, as slots of `dtype`, (count(n),).

        Raises:
            LayoutError: a value is above `levels`.
        """
        if values.size and int(values.max()) > self.levels:
            raise LayoutError(f"a value of {int(values.max())} is above {self.levels} levels")
        return self._join(values)

    def _join(self, values: NDArray[np.uint32]) -> Integers:
        size = self.count(values.size)
        out = np.zeros(size, np.uint64)
        for lane in range(self.lanes - 1, -1, -1):
            part = values[lane * size : (lane + 1) * size]
            out *= np.uint64(self.base)
            out[: part.size] += part
        return out.astype(self.dtype, copy=False)

    def unpack(self, slots: Integers, values: int) -> NDArray[np.uint32]:
        """The lanes of a slot sum as uint32 (values,); each is the exact sum over the sites.

        Raises:
            LayoutError: the number of slots does not fit, or one cannot be a sum of packed slots.
        """
        size = self.count(values)
        if slots.shape != (size,):
            raise LayoutError(f"{slots.shape} slots, not ({size},)")
        rest = slots.astype(np.uint64)
        out = np.empty(size * self.lanes, np.uint32)
        base = np.uint64(self.base)
        for lane in range(self.lanes - 1):
            quotient = rest // base
            out[lane * size : (lane + 1) * size] = rest - quotient * base
            rest = quotient
        if rest.size and int(rest.max()) >= self.base:
            raise LayoutError("a slot is larger than any sum of packed values")
        out[(self.lanes - 1) * size :] = rest
        return out[:values]


def open_slots(sites: int, bits: float) -> Slots:
    """One value a slot, of the least even number of levels that gives `bits`; nothing is wasted, for nothing is hidden.

    Raises:
        ConfigError: that many bits and sites do not fit 32 bits.

    >>> open_slots(4, 2.3).levels
    4
    """
    levels = max(2, 2 * math.ceil((2**bits - 1) / 2)) if bits < 32 else 1 << 32
    return Slots(modulus=1 << 32, base=sites * levels + 1, lanes=1, sites=sites)
