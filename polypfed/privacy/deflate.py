"""Sums of rounded values as few bytes: integers around a known centre, folded and put through zlib's Huffman coding.

z = 2 |v - centre| - (v < centre) is small where v is likely. Of few levels several share a byte, for no code is shorter
than a bit; of many, low bytes are coded by frequency alone, for they are noise, and higher ones, nearly all zero, by
runs too. Five levels of a bell curve take 1.8 bits, a sum of four 2.8.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from polypfed.privacy.errors import FrameRefused
from polypfed.privacy.slots import Integers, Slots

Octets = NDArray[np.uint8]


def deflate(total: Integers, slots: Slots, count: int = 1) -> bytes:
    """A sum of `count` sites' slots of one lane, (n,), as bytes."""
    most = count * slots.levels
    apart = total.astype(np.int64) - most // 2
    folded = 2 * np.abs(apart) - (apart < 0)
    if (together := _together(most)) > 1:
        return _coded(_joined(folded, most + 1, together))
    octets = folded.astype("<u8").view(np.uint8).reshape(-1, 8)
    return b"".join(_coded(octets[:, plane], plane) for plane in range(_planes(most)))


def inflate(data: bytes, length: int, slots: Slots, count: int = 1) -> NDArray[np.uint32]:
    """The inverse: uint32 (length,); no more memory is taken than that needs.

    Raises:
        FrameRefused: body: the bytes are no sum of `count` sites' slots, (length,).
    """
    most = count * slots.levels
    if (together := _together(most)) > 1:
        joined, data = _read(data, -(-length // together))
        folded = _parted(joined, most + 1, together)[:length]
    else:
        octets = np.zeros((length, 8), np.uint8)
        for plane in range(_planes(most)):
            octets[:, plane], data = _read(data, length)
        folded = octets.reshape(-1).view("<i8")
    if data:
        raise FrameRefused("body", f"has {len(data)} bytes too many")
    values = most // 2 + (folded + 1) // 2 * np.where(folded % 2, -1, 1)
    if length and not 0 <= int(values.min()) <= int(values.max()) <= most:
        raise FrameRefused("body", f"holds a value that is not from 0 to {most}")
    return values.astype(np.uint32)


def longest(length: int, slots: Slots, count: int = 1) -> int:
    """Bytes that `deflate` never exceeds."""
    return _planes(count * slots.levels) * (length + length // 1000 + 1024)


def _planes(most: int) -> int:
    """Bytes of the largest folded value."""
    return max(1, -(-most.bit_length() // 8))


def _together(most: int) -> int:
    """How many values from 0 to `most` share a byte."""
    return max((n for n in range(1, 9) if (most + 1) ** n <= 256), default=1)


def _joined(folded: NDArray[np.int64], base: int, together: int) -> Octets:
    """Digits to this base, so many to a byte."""
    digits = np.zeros((-(-folded.size // together), together), np.uint8)
    digits.reshape(-1)[: folded.size] = folded
    joined: Octets = digits @ np.array([base**n for n in range(together)], np.uint8)
    return joined


def _parted(joined: Octets, base: int, together: int) -> NDArray[np.int64]:
    """The inverse; a digit too many shows as a value above the highest."""
    rest, digits = joined.astype(np.int64), np.empty((joined.size, together), np.int64)
    for n in range(together - 1):
        rest, digits[:, n] = np.divmod(rest, base)
    digits[:, -1] = rest
    return digits.reshape(-1)


def _read(data: bytes, length: int) -> tuple[Octets, bytes]:
    """So many bytes, and what is behind their stream."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = stream.decompress(data, length + 1)
    except zlib.error as error:
        raise FrameRefused("body", f"is not deflated ({error})") from None
    if len(found) != length or not stream.eof:
        raise FrameRefused("body", f"is not of {length} bytes")
    return np.frombuffer(found, np.uint8), stream.unused_data


def _coded(plane: Octets, number: int = 0) -> bytes:
    strategy = zlib.Z_RLE if number else zlib.Z_HUFFMAN_ONLY
    stream = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return stream.compress(plane.tobytes()) + stream.flush()
