"""Seeds derived from one run seed: the same on every machine, for every purpose, round and client."""

import hashlib

import numpy as np


def derive(seed: int, purpose: str, *parts: object) -> int:
    """A 63-bit seed from (seed, purpose, parts), by BLAKE2b; never Python's `hash()`, never a global generator.

    >>> derive(0, "fit", 1, "hospital-a") == derive(0, "fit", 1, "hospital-a")
    True
    """
    text = "\x1f".join(map(str, (seed, purpose, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *parts: object) -> np.random.Generator:
    """A numpy generator of its own for one purpose."""
    return np.random.default_rng(derive(seed, purpose, *parts))
