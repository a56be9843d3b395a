import os
import resource
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from polypfed.core.errors import DataError
from polypfed.data.images import MAX_PIXELS, image_size, open_image, open_mask, read_image, thumbnail


def png_header(width, height, bits=8, colour=2):
    body = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", body), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def bmp_header(width, height):
    return b"BM" + b"\0" * 8 + struct.pack("<IIiiHHI", 54, 40, width, height, 1, 24, 0) + b"\0" * 20


def tiff_header(width, height):
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (279, 4, width * height),
    ]
    rows = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + rows + b"\0" * 4


def jpeg_header(jpeg, width, height):
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp"])
def test_reads_rgb(tmp_path, paint, suffix):
    path = paint(tmp_path / f"a{suffix}", 61, 47)
    pixels = open_image(path)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.array(Image.open(path).convert("RGB")))
    assert image_size(path) == (61, 47)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_reads_every_common_mode_as_rgb(tmp_path, paint, mode):
    image = Image.open(paint(tmp_path / "a.png")).convert(mode)
    image.save(tmp_path / "b.png")
    assert open_image(tmp_path / "b.png").shape == (48, 64, 3)
    assert open_mask(tmp_path / "b.png").shape == (48, 64)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_orientation_is_applied_as_pillow_does(tmp_path, paint, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = paint(tmp_path / f"a{suffix}", 64, 40, exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(open_image(path), expected)
    assert image_size(path) == expected.shape[1::-1]


def test_orientation_in_big_endian_exif(tmp_path, paint):
    plain = paint(tmp_path / "a.jpg", 64, 40).read_bytes()
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    (tmp_path / "b.jpg").write_bytes(
        plain[:2] + b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff + plain[2:]
    )
    assert image_size(tmp_path / "b.jpg") == (40, 64)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.png", lambda _: png_header(30_000, 30_000)),
        ("a.jpg", lambda jpeg: jpeg_header(jpeg, 10_000, 10_000)),
        ("a.bmp", lambda _: bmp_header(10_000, 10_000)),
        ("a.tif", lambda _: tiff_header(10_000, 10_000)),
        ("b.png", lambda _: png_header(1, 20_000_001)),
    ],
)
def test_bombs_are_refused_before_decoding(tmp_path, paint, name, make):
    jpeg = paint(tmp_path / "plain.jpg").read_bytes()
    (tmp_path / name).write_bytes(make(jpeg))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="at most 20,000,000") as caught:
        open_image(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_an_image_at_the_limit_passes_the_header_check(tmp_path):
    assert MAX_PIXELS == 20_000_000
    (tmp_path / "a.png").write_bytes(png_header(5000, 4000))
    assert image_size(tmp_path / "a.png") == (5000, 4000)


def test_empty_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png_header(0, 10))
    with pytest.raises(DataError, match="0 x 10"):
        image_size(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, paint, suffix):
    whole = paint(tmp_path / f"a{suffix}").read_bytes()
    cut = tmp_path / f"b{suffix}"
    for length in {0, 1, 2, 3, 10, 20, 30, *range(40, len(whole), max(1, len(whole) // 60)), len(whole) - 1}:
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError):
            open_image(cut)


@pytest.mark.parametrize(
    ("name", "source", "problem"),
    [
        ("a.png", "jpg", "ends as PNG, but its content is JPEG"),
        ("a.jpg", "png", "ends as JPEG, but its content is PNG"),
        ("a.gif", "jpg", "no known type"),
        ("a", "jpg", "no known type"),
    ],
)
def test_type_must_match_the_suffix(tmp_path, paint, name, source, problem):
    (tmp_path / name).write_bytes(paint(tmp_path / f"x.{source}").read_bytes())
    with pytest.raises(DataError, match=problem):
        read_image(tmp_path / name)


def test_other_content_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="no JPEG, PNG, BMP or TIFF"):
        open_image(tmp_path / "a.jpg")


def test_second_frame_header_is_refused(tmp_path, paint):
    jpeg = paint(tmp_path / "a.jpg").read_bytes()
    at = jpeg.index(b"\xff\xc0")
    frame = jpeg[at : at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")]
    (tmp_path / "a.jpg").write_bytes(jpeg[:at] + frame + jpeg[at:])
    with pytest.raises(DataError, match="two frame headers"):
        open_image(tmp_path / "a.jpg")


def test_files_made_of_nothing_but_markers_are_refused_fast(tmp_path):
    files = {
        "fill.jpg": b"\xff\xd8" + b"\xff" * 30_000_000,
        "segments.jpg": b"\xff\xd8" + b"\xff\xfe\x00\x02" * 5_000_000 + b"\xff\xd9",
        "chunks.png": png_header(4, 4)[:33] + struct.pack(">I4sI", 0, b"teXt", 0) * 2_000_000 + png_header(4, 4)[-12:],
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        start = time.process_time()
        with pytest.raises(DataError):
            open_image(tmp_path / name)
        assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "tiff",
    [
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\x05\0" + b"\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",
        b"II*\0\x08\0\0\0\xff\xff" + b"\0" * 40,
    ],
)
def test_unreadable_orientation_is_no_orientation(tmp_path, paint, tiff):
    plain = paint(tmp_path / "a.jpg", 64, 40).read_bytes()
    exif = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
    (tmp_path / "b.jpg").write_bytes(plain[:2] + exif + plain[2:])
    assert read_image(tmp_path / "b.jpg").orientation == 1


def test_wrong_checksum_in_png(tmp_path, paint):
    data = bytearray(paint(tmp_path / "a.png").read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match="wrong checksum in IDAT"):
        open_image(tmp_path / "a.png")


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="16 bits"):
        open_image(tmp_path / "a.png")


def test_progressive_jpeg(tmp_path, paint):
    path = paint(tmp_path / "a.jpg", progressive=True)
    assert np.array_equal(open_image(path), np.array(Image.open(path)))


def test_cmyk_jpeg_is_refused(tmp_path):
    Image.new("CMYK", (8, 8)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="4 channels"):
        open_image(tmp_path / "a.jpg")


def test_missing_folder_pipe_device_and_nul(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    for name in ("none.jpg", "pipe.jpg", "folder.jpg", "device.jpg", "a\0b.jpg"):
        with pytest.raises(DataError):
            open_image(tmp_path / name)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_mutated_files_end_in_a_typed_error_or_an_image(tmp_path, paint, suffix):
    whole = paint(tmp_path / f"a{suffix}", 24, 16).read_bytes()
    rng = np.random.default_rng(7)
    path, refused = tmp_path / f"b{suffix}", 0
    for _ in range(700):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            data[at] = rng.integers(0, 256)
        path.write_bytes(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.2 else data)
        try:
            assert open_image(path).ndim == 3
        except DataError:
            refused += 1
    assert refused


def test_thumbnail_is_the_mean_over_a_grid(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4, :4] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert thumbnail(tmp_path / "a.png", 2).tolist() == [[200, 0], [0, 0]]
