"""Sums of rounded values as few bytes: integers around a known centre, folded and put through zlib's Huffman coding.

z = 2 |v - centre| - (v < centre) is small where v is likely. Its low bytes are coded by frequency alone, for they are
noise; its higher ones, nearly all zero, by runs too. Five levels of a bell curve take 1.8 bits, a sum of four 2.8.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from polypfed.privacy.errors import FrameRefused
from polypfed.privacy.slots import Integers, Slots


def deflate(total: Integers, slots: Slots, count: int = 1) -> bytes:
    """A sum of `count` sites' slots of one lane, (n,), as bytes."""
    centre, _, planes = _range(slots, count)
    apart = total.astype(np.int64) - centre
    folded = (2 * np.abs(apart) - (apart < 0)).astype("<u8").view(np.uint8).reshape(-1, 8)
    return b"".join(_coded(folded[:, plane], plane) for plane in range(planes))


def inflate(data: bytes, length: int, slots: Slots, count: int = 1) -> NDArray[np.uint32]:
    """The inverse: uint32 (length,); no more memory is taken than that needs.

    Raises:
        FrameRefused: body: the bytes are no sum of `count` sites' slots, (length,).
    """
    centre, most, planes = _range(slots, count)
    octets = np.zeros((length, 8), np.uint8)
    for plane in range(planes):
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            found = stream.decompress(data, length + 1)
        except zlib.error as error:
            raise FrameRefused("body", f"is not deflated ({error})") from None
        if len(found) != length or not stream.eof:
            raise FrameRefused("body", f"does not hold {length} values")
        octets[:, plane], data = np.frombuffer(found, np.uint8), stream.unused_data
    if data:
        raise FrameRefused("body", f"has {len(data)} bytes too many")
    folded = octets.reshape(-1).view("<i8")
    values = centre + (folded + 1) // 2 * np.where(folded % 2, -1, 1)
    if length and not 0 <= int(values.min()) <= int(values.max()) <= most:
        raise FrameRefused("body", f"holds a value that is not from 0 to {most}")
    return values.astype(np.uint32)


def longest(length: int, slots: Slots, count: int = 1) -> int:
    """Bytes that `deflate` never exceeds."""
    return _range(slots, count)[2] * (length + length // 1000 + 1024)


def _range(slots: Slots, count: int) -> tuple[int, int, int]:
    """What zeros add up to, the largest sum, and the bytes of what that is folded to."""
    most = count * slots.levels
    return most // 2, most, max(1, -(-most.bit_length() // 8))


def _coded(plane: NDArray[np.uint8], number: int) -> bytes:
    strategy = zlib.Z_RLE if number else zlib.Z_HUFFMAN_ONLY
    stream = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return stream.compress(plane.tobytes()) + stream.flush()
