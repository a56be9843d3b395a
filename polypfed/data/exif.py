"""The one thing in EXIF that changes what a viewer sees: the orientation."""

import struct

_ORIENTATION = 0x0112


def orientation_of(tiff: bytes) -> int:
    """Orientation 1..8 from the TIFF structure inside an EXIF block; 1 if there is none or it cannot be read."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(count):
            tag, kind, number, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * entry)
            if (tag, kind, number) == (_ORIENTATION, 3, 1):
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
