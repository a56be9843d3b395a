"""JPEG files segment by segment: what is needed to decode stays, everything else is dropped."""

import re
import struct

from polypfed.core.errors import DataError
from polypfed.data.exif import orientation_of

_MOST_SEGMENTS = 10_000  # a real file has some dozens
_FILL = re.compile(rb"\xff+")
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # a marker that is neither a stuffed zero nor a restart
_SOI, _EOI, _SOS, _APP0, _APP1, _APP14, _COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE, 0xFE
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: what every decoder reads
_TABLES = (0xC4, 0xDB, 0xDD)  # Huffman, quantisation, restart interval


def parse_jpeg(data: bytes) -> tuple[tuple[int, int], int, bytes]:
    """Stored (width, height), EXIF orientation (1..8) and the same image without metadata.

    EXIF, XMP, IPTC, comments, colour profiles, thumbnails and whatever follows the end marker are left out; the
    compressed pixels are copied as they are.

    Raises:
        DataError: damaged, truncated, or of a kind that common decoders do not read. Source: ITU-T T.81, annex B.
    """
    size: tuple[int, int] | None = None
    orientation, kept, at = 1, [data[:2]], 2
    while len(kept) < _MOST_SEGMENTS:
        marker, start, end = _segment(data, at)
        payload = data[start + 2 : end]
        if marker == _EOI:
            break
        if marker in _FRAMES:
            if size:
                raise DataError("damaged JPEG: two frame headers")
            size = _frame_size(payload)
        if marker == _APP1 and payload.startswith(b"Exif\0\0"):
            orientation = orientation_of(payload[6:])
        end = _scan_end(data, end) if marker == _SOS else end
        kept.append(_kept(marker, data[at:end], payload))
        at = end
    if size is None or len(kept) in (2, _MOST_SEGMENTS):
        raise DataError("damaged JPEG: no image in it, or too many segments")
    return size, orientation, b"".join([*kept, b"\xff\xd9"])


def _segment(data: bytes, at: int) -> tuple[int, int, int]:
    """Marker, start of its length field and end of the segment that begins at `at`."""
    filled = _FILL.match(data, at)
    start = filled.end() - 1 if filled else at
    head = data[start : start + 4]
    if len(head) < 2 or head[0] != 0xFF:
        raise DataError("truncated JPEG: the end marker is missing" if len(head) < 2 else "damaged JPEG")
    if head[1] == _EOI:
        return _EOI, start, start + 2
    length = struct.unpack(">H", head[2:])[0] if len(head) == 4 else 0
    end = start + 2 + length
    if length < 2 or end > len(data):
        raise DataError("truncated JPEG: a segment ends early")
    return head[1], start + 2, end


def _frame_size(payload: bytes) -> tuple[int, int]:
    if len(payload) < 6:
        raise DataError("damaged JPEG: frame header too short")
    bits, height, width, channels = struct.unpack(">BHHB", payload[:6])
    if bits != 8 or channels not in (1, 3):
        raise DataError(f"JPEG with {channels} channels of {bits} bits", remedy="Save it as 8-bit RGB")
    return width, height


def _scan_end(data: bytes, at: int) -> int:
    found = _SCAN_END.search(data, at)
    if not found:
        raise DataError("truncated JPEG: the end marker is missing")
    return found.start()


def _kept(marker: int, segment: bytes, payload: bytes) -> bytes:
    if marker in _FRAMES or marker in _TABLES or marker == _SOS:
        return segment
    if marker == _APP14 and payload[:5] == b"Adobe" and len(payload) == 12:
        return segment  # says whether the channels are RGB or YCbCr
    if marker == _APP0 and payload[:5] == b"JFIF\0" and len(payload) >= 14:
        return b"\xff\xe0\x00\x10" + payload[:12] + b"\0\0"  # without its thumbnail
    if _APP0 <= marker <= 0xEF or marker == _COM:
        return b""
    raise DataError(f"JPEG of an unusual kind (marker {marker:#x})", remedy="Save it as a baseline JPEG or a PNG")
