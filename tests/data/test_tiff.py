import struct
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from polypfed.core.errors import DataError
from polypfed.data.images import open_image, open_mask


def tiff(pixels, rows_per_strip=3, **changes):
    """An uncompressed little-endian TIFF like those of CVC-ClinicDB: three samples, but grey photometric."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    strips = [pixels[y : y + rows_per_strip].tobytes() for y in range(0, height, rows_per_strip)]
    offsets, at = [], 8
    for strip in strips:
        offsets.append(at)
        at += len(strip)
    tags = {
        256: (3, [width]),
        257: (3, [height]),
        258: (3, [8] * channels),
        259: (3, [1]),
        262: (3, [1]),
        273: (4, offsets),
        277: (3, [channels]),
        278: (3, [rows_per_strip]),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [1]),
    }
    for tag, values in changes.items():
        tags[int(tag[1:])] = (tags[int(tag[1:])][0], values)
    extra_at = at + 2 + 12 * len(tags) + 4
    rows, extra = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        data = struct.pack(f"<{len(values)}{'HI'[kind == 4]}", *values)
        inline = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", extra_at + len(extra))
        extra += data if len(data) > 4 else b""
        rows += struct.pack("<HHI", tag, kind, len(values)) + inline
    body = struct.pack("<H", len(tags)) + rows + b"\0" * 4 + extra
    return b"II*\0" + struct.pack("<I", at) + b"".join(strips) + body


@pytest.fixture
def colour():
    return np.random.default_rng(0).integers(0, 256, (10, 7, 3), dtype=np.uint8)


def test_colour_under_a_grey_label_comes_out_in_colour(tmp_path, colour):
    (tmp_path / "a.tif").write_bytes(tiff(colour))
    assert np.array_equal(open_image(tmp_path / "a.tif"), colour)


def test_rgb_and_grey(tmp_path, colour):
    (tmp_path / "a.tif").write_bytes(tiff(colour, t262=[2]))
    assert np.array_equal(open_image(tmp_path / "a.tif"), colour)
    (tmp_path / "b.tif").write_bytes(tiff(colour[..., 0]))
    assert np.array_equal(open_mask(tmp_path / "b.tif"), colour[..., 0])


def test_agrees_with_pillow_where_pillow_can(tmp_path, colour):
    Image.fromarray(colour).save(tmp_path / "a.tiff")
    assert np.array_equal(open_image(tmp_path / "a.tiff"), colour)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"t259": [5]}, "does not read"),
        ({"t284": [2]}, "does not read"),
        ({"t258": [16, 16, 16]}, "does not read"),
        ({"t262": [3]}, "does not read"),
        ({"t277": [4]}, "does not read"),
        ({"t256": [6]}, "do not fill"),
        ({"t279": [1, 1, 1, 1]}, "do not fill"),
        ({"t273": [8, 71, 134, 4000]}, "ends early"),
    ],
)
def test_anything_else_is_refused(tmp_path, colour, change, problem):
    (tmp_path / "a.tif").write_bytes(tiff(colour, **change))
    with pytest.raises(DataError, match=problem):
        open_image(tmp_path / "a.tif")


def test_big_endian_is_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"MM\0*" + b"\0" * 40)
    with pytest.raises(DataError, match="little-endian"):
        open_image(tmp_path / "a.tif")


def test_mutated_files_end_in_a_typed_error_or_an_image(tmp_path, colour):
    whole, rng = tiff(colour), np.random.default_rng(3)
    for _ in range(500):
        data = bytearray(whole)
        for at in rng.integers(len(whole) - 170, len(whole), rng.integers(1, 4)):
            data[at] = rng.integers(0, 256)
        (tmp_path / "a.tif").write_bytes(data)
        with suppress(DataError):
            assert open_image(tmp_path / "a.tif").shape[2] == 3
