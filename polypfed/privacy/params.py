"""BFV parameters derived from the number of sites: one prime, no evaluation keys, sums that cannot fail to decrypt.

A fresh symmetric ciphertext has noise of at most 21 (SEAL's centred binomial of 21 + 21 bits) and 1/2 from rounding
q m / t; a sum of K decrypts exactly if 2 K * 21.5 * t < q. The rule here is 2 * 22 * K * t <= q: it holds in the worst
case, not only with high probability, because a decryption failure that becomes known leaks the key (Cheon et al.,
Attacks against the IND-CPA-D security of exact FHE schemes, 2024).
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from math import log2
from typing import Literal

from polypfed.core.errors import ConfigError
from polypfed.core.settings import whole
from polypfed.privacy.slots import MOST_LANES, Slots

Profile = Literal["std", "pq128", "tc256"]

PROFILES: dict[str, tuple[int, int, str]] = {
    "std": (2048, 54, "TC128"),
    "pq128": (2048, 51, "TC128"),
    "tc256": (4096, 58, "TC256"),
}
"""Ring degree, bits of the prime, and SEAL's classical level. The limits of the homomorphic encryption standard for
ternary secrets: degree 2048: 54 bits classical 128, 51 post-quantum 128; degree 4096: 58 classical 256, 70 pq 192."""

MAX_SITES = 128


@dataclass(frozen=True)
class HEParams:
    """Everything public about a ciphertext; `for_sites` derives it.

    Attributes:
        profile: "std", "pq128" or "tc256".
        sites: the largest number of sites in a sum; one more is refused, never wrapped.
        lanes: values per slot.
        degree: N, slots per ciphertext.
        prime: q, the coefficient modulus.
        slots: the plain modulus t and the lanes below it; a coefficient each.

    Examples:
        >>> params = HEParams.for_sites(8, bits=8)
        >>> params.lanes, params.slots.levels, round(params.bytes_per_value, 3)
        (4, 334, 1.695)
    """

    profile: Profile
    sites: int
    lanes: int

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ConfigError(f"{self.profile!r} is not one of {', '.join(PROFILES)}", where="profile")
        whole("sites", self.sites, 2, MAX_SITES)
        whole("lanes", self.lanes, 1, MOST_LANES)
        _ = self.slots

    @classmethod
    def for_sites(
        cls, sites: int, *, bits: float | None = None, lanes: int | None = None, profile: Profile = "std"
    ) -> "HEParams":
        """The fewest bytes that give `bits` per value (8 if nothing is said), or just `lanes` values per slot.

        Raises:
            ConfigError: both are given, or no layout gives so many bits for so many sites.
        """
        if lanes is not None:
            if bits is not None:
                raise ConfigError("give bits or lanes, not both", where="bits")
            return cls(profile, sites, lanes)
        wanted = 8.0 if bits is None else bits
        for count in range(MOST_LANES, 0, -1):
            try:
                found = cls(profile, sites, count)
            except ConfigError:
                if count == 1:
                    raise
                continue
            if found.bits >= wanted:
                return found
        raise ConfigError(f"{wanted} bits for {sites} sites are too many", where="bits", remedy="Ask for fewer bits")

    @property
    def degree(self) -> int:
        return PROFILES[self.profile][0]

    @property
    def prime_bits(self) -> int:
        """Bits of q, and of a coefficient on the wire."""
        return PROFILES[self.profile][1]

    @property
    def security(self) -> str:
        """The name of SEAL's level that the context must meet."""
        return PROFILES[self.profile][2]

    @cached_property
    def prime(self) -> int:
        step = 2 * self.degree
        value = (1 << self.prime_bits) // step * step + 1
        while value >= 1 << self.prime_bits or not is_prime(value):
            value -= step
        return value

    @cached_property
    def slots(self) -> Slots:
        """The largest base whose `lanes`-th power t keeps 44 * sites * t <= q."""
        base = min(_root(self.prime // (44 * self.sites), self.lanes), 1 << 32)
        return Slots(base**self.lanes, base, self.lanes, self.sites)

    @property
    def bits(self) -> float:
        """Bits of one site's value."""
        return log2(self.slots.levels + 1)

    @property
    def bytes_per_value(self) -> float:
        """Of an upload, without frame headers: one packed polynomial and a seed of 64 bytes per ciphertext."""
        return (self.degree * self.prime_bits / 8 + 64) / (self.degree * self.lanes)

    @cached_property
    def id(self) -> bytes:
        """8 bytes: equal parameters, equal ids."""
        numbers = (self.profile, self.sites, self.lanes, self.degree, self.prime, self.slots.modulus, self.slots.base)
        return hashlib.sha256(repr(("polypfed bfv 2", *numbers)).encode()).digest()[:8]


def _root(value: int, k: int) -> int:
    """The largest integer whose k-th power is at most `value`."""
    guess = int(float(value) ** (1 / k)) + 3
    while guess**k > value:
        guess -= 1
    return guess


def is_prime(n: int) -> bool:
    """Miller-Rabin with the first 12 primes as bases: exact below 3.3e24 (Sorenson and Webster, 2015)."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if n < 2 or any(n % p == 0 for p in bases):
        return n in bases
    shift = (n - 1 & 1 - n).bit_length() - 1
    for base in bases:
        x = pow(base, n - 1 >> shift, n)
        if x in (1, n - 1):
            continue
        for _ in range(shift - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True
