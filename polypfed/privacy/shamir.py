"""Shamir, How to share a secret, 1979: any t of n points give the secret, t - 1 of them give nothing."""

import secrets
from collections.abc import Mapping, Sequence

from polypfed.core.errors import ConfigError

PRIME = 2**521 - 1
"""A Mersenne prime above every 64-byte secret."""

SHARE = 66
"""Bytes of a share of it."""


def split(secret: int, threshold: int, points: Sequence[int], prime: int = PRIME) -> dict[int, int]:
    """f(x) at each point of a random polynomial of degree threshold - 1 with f(0) = secret.

    Raises:
        ConfigError: the points are not distinct numbers from 1 to prime - 1, fewer than the threshold, or the secret
            does not fit.
    """
    if len(set(points)) < len(points) or not all(0 < x < prime for x in points):
        raise ConfigError("points must be distinct and above 0", where="points")
    if not 1 <= threshold <= len(points) or not 0 <= secret < prime:
        raise ConfigError(f"{threshold} of {len(points)} shares cannot be had", where="threshold")
    coefficients = [secret, *(secrets.randbelow(prime) for _ in range(threshold - 1))]
    return {x: value_at(coefficients, x, prime) for x in points}


def value_at(coefficients: Sequence[int], x: int, prime: int = PRIME) -> int:
    """The polynomial's value; the lowest coefficient comes first."""
    value = 0
    for c in reversed(coefficients):
        value = (value * x + c) % prime
    return value


def join(shares: Mapping[int, int], prime: int = PRIME) -> int:
    """f(0) by Lagrange's formula; as many shares as the threshold, no more are needed."""
    total = 0
    for x, y in shares.items():
        above = below = 1
        for other in shares:
            if other != x:
                above = above * other % prime
                below = below * (other - x) % prime
        total += y * above * pow(below, -1, prime)
    return total % prime
