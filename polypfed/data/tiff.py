"""The TIFF files of the public sets: uncompressed, 8 bits, grey or RGB.

CVC-ClinicDB declares three samples per pixel but a grey photometric interpretation. OpenCV then returns one plane,
repeated, and Pillow refuses the file; both are wrong, so the strips are read here.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import DataError

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_OFFSETS, _SAMPLES, _COUNTS, _PLANAR = 273, 277, 279, 284
_WANTED = (_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _OFFSETS, _SAMPLES, _COUNTS, _PLANAR)
_MOST_TAGS, _MOST_STRIPS = 200, 65_536
_TYPES = {3: "H", 4: "I"}  # SHORT, LONG
_REMEDY = "Save it as PNG"


def tiff_size(data: bytes) -> tuple[int, int]:
    """(width, height) of the first image. Raises DataError for any TIFF that `parse_tiff` does not read."""
    tags = _tags(data)
    return tags[_WIDTH][0], tags[_HEIGHT][0]


def parse_tiff(data: bytes) -> NDArray[np.uint8]:
    """Pixels of the first image: (h, w) or (h, w, 3) uint8.

    Raises:
        DataError: big-endian, compressed, planar, tiled, not 8 bits, or strips that do not fill the image. Source:
            TIFF 6.0, sections 2 to 8.
    """
    tags = _tags(data)
    width, height, channels = tags[_WIDTH][0], tags[_HEIGHT][0], tags[_SAMPLES][0]
    if len(tags[_OFFSETS]) != len(tags[_COUNTS]) or sum(tags[_COUNTS]) != width * height * channels:
        raise DataError("damaged TIFF: the strips do not fill the image", remedy=_REMEDY)
    strips = [data[at : at + count] for at, count in zip(tags[_OFFSETS], tags[_COUNTS], strict=True)]
    pixels = np.frombuffer(b"".join(strips), np.uint8)
    if pixels.size != width * height * channels:
        raise DataError("truncated TIFF: a strip ends early")
    return pixels.reshape((height, width) if channels == 1 else (height, width, 3))


def _tags(data: bytes) -> dict[int, tuple[int, ...]]:
    if data[:4] != b"II*\0":
        raise DataError("not a little-endian TIFF", remedy=_REMEDY)
    tags: dict[int, tuple[int, ...]] = {_COMPRESSION: (1,), _SAMPLES: (1,), _PLANAR: (1,), _BITS: (1,)}
    try:
        (start,) = struct.unpack_from("<I", data, 4)
        (count,) = struct.unpack_from("<H", data, start)
        for entry in range(min(count, _MOST_TAGS)):
            tag, kind, number = struct.unpack_from("<HHI", data, start + 2 + 12 * entry)
            if tag in _WANTED and kind in _TYPES:
                tags[tag] = _values(data, start + 10 + 12 * entry, kind, number)
    except struct.error:
        raise DataError("truncated TIFF: its directory ends early") from None
    _check(tags)
    return tags


def _values(data: bytes, at: int, kind: int, count: int) -> tuple[int, ...]:
    form = _TYPES[kind]
    size = struct.calcsize("<" + form) * count
    if count > _MOST_STRIPS:
        raise DataError("damaged TIFF: too many strips")
    if size > 4:
        (at,) = struct.unpack_from("<I", data, at)
    return struct.unpack_from(f"<{count}{form}", data, at)


def _check(tags: dict[int, tuple[int, ...]]) -> None:
    if not all(tags.get(tag) for tag in (_WIDTH, _HEIGHT, _OFFSETS, _COUNTS, _PHOTOMETRIC, _SAMPLES)):
        raise DataError("TIFF without strips", remedy=_REMEDY)
    grey_or_rgb = tags[_PHOTOMETRIC] == (1,) or (tags[_PHOTOMETRIC], tags[_SAMPLES]) == ((2,), (3,))
    plain = tags[_COMPRESSION] == (1,) and tags[_PLANAR] == (1,) and set(tags[_BITS]) == {8}
    if not (grey_or_rgb and plain and tags[_SAMPLES] in ((1,), (3,))):
        raise DataError("TIFF of a kind this library does not read", remedy=_REMEDY)
