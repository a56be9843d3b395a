"""Reading images from strangers: the header is judged before a pixel is decoded."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import DataError
from polypfed.data import png
from polypfed.data.files import read_file
from polypfed.data.jpeg import parse_jpeg
from polypfed.data.png import parse_png
from polypfed.data.tiff import parse_tiff, tiff_size

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 20_000_000
SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}
_MAGIC = {b"\xff\xd8\xff": "JPEG", png.SIGNATURE: "PNG", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageFile:
    """An image that has been looked at but not decoded.

    `size` is (width, height) of the upright image; `clean` are the file's bytes without any metadata, `same` tells
    whether that took nothing away and the pixels are upright as stored.
    """

    kind: str
    size: tuple[int, int]
    orientation: int
    clean: bytes = field(repr=False)
    same: bool


def read_image(path: Path) -> ImageFile:
    """Check an image file without decoding it.

    Raises:
        DataError: missing, of a type the suffix does not name, over 20 million pixels, damaged or truncated.
    """
    data = read_file(path)
    try:
        return _inspect(data, SUFFIXES.get(path.suffix.lower(), ""))
    except DataError as fault:
        raise DataError(fault.problem, where=path, remedy=fault.remedy) from None


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright image, in pixels, without decoding it. Raises what `read_image` raises."""
    return read_image(path).size


def open_image(path: Path) -> Pixels:
    """(h, w, 3) uint8 RGB, upright.

    Raises:
        DataError: whatever `read_image` raises, or the pixels cannot be decoded.
    """
    return decode(read_image(path), "RGB", path)


def open_mask(path: Path) -> Pixels:
    """(h, w) uint8 grey, upright, whatever the number of channels stored. Raises what `open_image` raises."""
    return decode(read_image(path), "L", path)


def thumbnail(path: Path, side: int) -> Pixels:
    """(side, side) uint8 grey means over an even grid, aspect not kept. Raises what `open_image` raises."""
    from PIL import Image

    return np.array(Image.fromarray(open_mask(path)).resize((side, side), Image.Resampling.BOX))


def decode(file: ImageFile, mode: str, where: object) -> Pixels:
    """Decode to "RGB" (h, w, 3) or "L" (h, w), uint8, upright. Raises DataError if that fails."""
    from PIL import Image

    try:
        image = Image.fromarray(parse_tiff(file.clean)) if file.kind == "TIFF" else _open(file)
        return np.array(image.convert(mode))
    except DataError as fault:
        raise DataError(fault.problem, where=where, remedy=fault.remedy) from None
    except Exception as fault:  # noqa: BLE001 - a decoder fed by strangers may raise anything; none of it may pass untyped
        raise DataError(f"the image cannot be decoded ({fault})", where=where) from None


def encode(pixels: Pixels, kind: str) -> bytes:
    """(h, w, 3) uint8 RGB as "JPEG" (quality 95, full colour) or "PNG" (lossless), without metadata."""
    from PIL import Image

    out = io.BytesIO()
    if kind == "JPEG":
        Image.fromarray(pixels).save(out, "JPEG", quality=95, subsampling=0)
    else:
        Image.fromarray(pixels).save(out, "PNG", compress_level=4)
    return out.getvalue()


def _inspect(data: bytes, expected: str) -> ImageFile:
    kind = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), "")
    if not kind or kind != expected:
        found = f"its content is {kind}" if kind else "its content is no JPEG, PNG, BMP or TIFF"
        raise DataError(f"the name ends as {expected or 'no known type'}, but {found}", remedy="Convert or rename it")
    orientation, clean = 1, data
    if kind == "JPEG":
        size, orientation, clean = parse_jpeg(data)
    elif kind == "PNG":
        size, orientation, clean = parse_png(data)
    else:
        size = tiff_size(data) if kind == "TIFF" else _bmp_size(data)
    if not 0 < size[0] * size[1] <= MAX_PIXELS:
        raise DataError(f"{size[0]} x {size[1]} pixels; at most {MAX_PIXELS:,} are read", remedy="Scale it down")
    upright = size if orientation < 5 else size[::-1]
    return ImageFile(kind, upright, orientation, clean, orientation == 1 and clean == data)


def _bmp_size(data: bytes) -> tuple[int, int]:
    if len(data) < 54 or int.from_bytes(data[14:18], "little") < 40:
        raise DataError("truncated or very old BMP", remedy="Save it as PNG")
    width = int.from_bytes(data[18:22], "little", signed=True)
    height = abs(int.from_bytes(data[22:26], "little", signed=True))  # negative: stored from the top
    if width <= 0 or int.from_bytes(data[30:34], "little") not in (0, 3):
        raise DataError("BMP of a kind this library does not read", remedy="Save it as PNG")
    return width, height


def _open(file: ImageFile) -> "Image.Image":
    from PIL import Image

    image = Image.open(io.BytesIO(file.clean), formats=[file.kind])
    stored = file.size if file.orientation < 5 else file.size[::-1]
    if image.size != stored:
        raise DataError("damaged: two headers that disagree about the size")
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> Image.Transpose
    return image.transpose(Image.Transpose(turns[file.orientation])) if file.orientation != 1 else image
