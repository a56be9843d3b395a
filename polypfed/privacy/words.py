"""Arrays of b-bit words as bytes and back, and addition modulo a prime."""

import numpy as np
from numpy.typing import NDArray

from polypfed.privacy.errors import FrameRefused

_GROUP = 64  # values of b bits fill b words of 64 bits


def packed_bytes(rows: int, degree: int, bits: int) -> int:
    """Bytes of (rows, degree) values; degree is a multiple of 64."""
    return rows * degree * bits // 8


def pack(values: NDArray[np.uint64], bits: int) -> bytes:
    """(rows, degree) values below 2**bits as little-endian bits, value after value."""
    groups = np.ascontiguousarray(values.reshape(-1, _GROUP).T)
    out = np.zeros((bits, groups.shape[1]), np.uint64)
    for i in range(_GROUP):
        word, shift = divmod(i * bits, 64)
        out[word] |= groups[i] << np.uint64(shift)
        if shift + bits > 64:
            out[word + 1] |= groups[i] >> np.uint64(64 - shift)
    return out.T.tobytes()


def unpack(data: bytes | memoryview, rows: int, degree: int, bits: int, prime: int) -> NDArray[np.uint64]:
    """The inverse of `pack`, modulo `prime`, which has just as many bits: whatever was packed becomes a residue.

    Raises:
        FrameRefused: body: the length is wrong.
    """
    if len(data) != packed_bytes(rows, degree, bits):
        raise FrameRefused("body", f"{len(data)} bytes are not {rows} x {degree} values of {bits} bits")
    words = np.ascontiguousarray(np.frombuffer(data, "<u8").reshape(-1, bits).T)
    out = np.empty((_GROUP, words.shape[1]), np.uint64)
    mask = np.uint64((1 << bits) - 1)
    for i in range(_GROUP):
        word, shift = divmod(i * bits, 64)
        out[i] = words[word] >> np.uint64(shift)
        if shift + bits > 64:
            out[i] |= words[word + 1] << np.uint64(64 - shift)
    out &= mask
    np.minimum(out, out - np.uint64(prime), out=out)
    return np.ascontiguousarray(out.T).reshape(rows, degree)


def add_mod(total: NDArray[np.uint64], values: NDArray[np.uint64], prime: int) -> None:
    """total = total + values mod prime, in place; both below prime < 2**63."""
    total += values
    np.minimum(total, total - np.uint64(prime), out=total)  # below the prime the difference wraps to a huge number
