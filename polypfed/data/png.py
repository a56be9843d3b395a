"""PNG files chunk by chunk: only the pixels stay."""

import struct
import zlib

from polypfed.core.errors import DataError
from polypfed.data.exif import orientation_of

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 100_000  # at 8 kB each, far more than an image within the limits has
_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")


def parse_png(data: bytes) -> tuple[tuple[int, int], int, bytes]:
    """Stored (width, height), EXIF orientation (1..8) and the same image without metadata.

    Text, EXIF, time, colour profiles, animation and whatever follows the last chunk are left out; the compressed pixels
    are copied as they are.

    Raises:
        DataError: damaged, truncated, or 16 bits per channel. Source: PNG specification (third edition), section 5.
    """
    size: tuple[int, int] | None = None
    orientation, kept, at = 1, [SIGNATURE], 8
    for _ in range(_MOST_CHUNKS):
        name, body, end = _chunk(data, at)
        if name == b"IHDR":
            if size:
                raise DataError("damaged PNG: two headers")
            size = _header(body)
        elif size is None:
            raise DataError("damaged PNG: the header is not first")
        if name == b"eXIf":
            orientation = orientation_of(body)
        if name in _PIXELS:
            kept.append(data[at:end])
        if name == b"IEND":
            return size, orientation, b"".join(kept)
        at = end
    raise DataError("damaged PNG: too many chunks")


def _chunk(data: bytes, at: int) -> tuple[bytes, bytes, int]:
    """Name, body and end of the chunk at `at`; the checksum of what is kept has been compared."""
    if at + 12 > len(data):
        raise DataError("truncated PNG: the end chunk is missing")
    length, name = struct.unpack_from(">I4s", data, at)
    end = at + 12 + length
    if end > len(data):
        raise DataError("truncated PNG: a chunk ends early")
    body = data[at + 8 : end - 4]
    if name in _PIXELS and zlib.crc32(name + body) != struct.unpack_from(">I", data, end - 4)[0]:
        raise DataError(f"damaged PNG: wrong checksum in {name.decode()}")
    return name, body, end


def _header(body: bytes) -> tuple[int, int]:
    if len(body) != 13:
        raise DataError("damaged PNG: header of the wrong length")
    width, height, bits = struct.unpack_from(">IIB", body)
    if bits > 8:
        raise DataError(f"PNG with {bits} bits per channel", remedy="Save it with 8 bits per channel")
    return width, height
