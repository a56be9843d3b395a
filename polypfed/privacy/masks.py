"""Masks: uniform integers modulo m from a 32-byte seed, and their addition. AES-256 in counter mode."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed.core.extras import require
from polypfed.core.settings import whole
from polypfed.privacy.slots import Integers, Slots

_BLOCK = 1 << 18  # bytes of key stream at a time


def ring_slots(sites: int, bits: float = 8.0) -> Slots:
    """One value per 16-bit slot if that gives `bits` for so many sites, else per 32-bit slot."""
    short = Slots(1 << 16, 1 << 16, 1, sites)
    return short if np.log2(short.levels + 1) >= bits else Slots(1 << 32, 1 << 32, 1, sites)


@dataclass(frozen=True)
class Ring:
    """Integers modulo `modulus`: 2**16, 2**32, or a plain modulus of BFV for masks inside encrypted slots."""

    modulus: int

    def __post_init__(self) -> None:
        whole("modulus", self.modulus, 2, 1 << 62)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """An unsigned type that holds an element; for other moduli than powers of two, the sum of two."""
        bits = (self.modulus - 1).bit_length()
        bits += self.modulus not in (1 << 16, 1 << 32)
        return np.dtype(np.uint16 if bits <= 16 else np.uint32 if bits <= 32 else np.uint64)

    def mask(self, seed: bytes, length: int) -> Integers:
        """`length` independent uniform elements, the same for the same seed on every machine.

        Where the modulus is no power of two, words that are too large are skipped: a remainder would not be uniform.
        """
        little = self.dtype.newbyteorder("<")
        if self.modulus == 1 << 8 * self.dtype.itemsize:
            words = np.empty(length, little)
            _fill(seed, words.view(np.uint8))
            return words.astype(self.dtype, copy=False)
        out, filled = np.empty(length, self.dtype), 0
        bits = self.dtype.type((1 << (self.modulus - 1).bit_length()) - 1)
        for block in _stream(seed):
            if filled >= length:
                break
            words = np.frombuffer(block, little) & bits
            words = words[words < self.modulus][: length - filled]
            out[filled : filled + words.size] = words
            filled += words.size
        return out

    def add(self, total: Integers, values: Integers) -> None:
        """total += values, in place."""
        total += values
        if self.modulus != 1 << 8 * self.dtype.itemsize:
            np.minimum(total, total - self.dtype.type(self.modulus), out=total)

    def subtract(self, total: Integers, values: Integers) -> None:
        """total -= values, in place."""
        total -= values
        if self.modulus != 1 << 8 * self.dtype.itemsize:
            np.minimum(total, total + self.dtype.type(self.modulus), out=total)

    def zeros(self, length: int) -> Integers:
        """The empty sum."""
        return np.zeros(length, self.dtype)

    def holds(self, values: NDArray[np.unsignedinteger]) -> bool:
        """Are all values below the modulus?"""
        return not values.size or int(values.max()) < self.modulus


def _stream(seed: bytes) -> Iterator[bytes]:
    """AES-256-CTR key stream from counter 0 in blocks, without end; each seed is used for one stream only."""
    stream, zeros = _cipher(seed), bytes(_BLOCK)
    while True:
        yield bytes(stream.update(zeros))


def _fill(seed: bytes, out: NDArray[np.uint8]) -> None:
    """The beginning of the same stream, written in place."""
    stream, zeros, scratch = _cipher(seed), bytes(_BLOCK), bytearray(_BLOCK + 15)
    for start in range(0, out.size, _BLOCK):
        part = out[start : start + _BLOCK]
        stream.update_into(memoryview(zeros)[: part.size], scratch)
        part[:] = np.frombuffer(scratch, np.uint8, part.size)


def _cipher(seed: bytes) -> Any:
    ciphers = require("cryptography.hazmat.primitives.ciphers", extra="he")
    return ciphers.Cipher(ciphers.algorithms.AES256(seed), ciphers.modes.CTR(bytes(16))).encryptor()
