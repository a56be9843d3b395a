"""Planted secrets are searched in what comes out."""

import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from polypfed.data.images import read_image
from polypfed.data.sample import Sample
from polypfed.data.yolo import write_yolo

SECRETS = (
    b"Jane Doe",
    b"1970-01-31",
    b"GPSGPS",
    b"xmpmeta",
    b"THUMBNAIL",
    b"IPTCIPTC",
    b"ICCICC",
    b"TRAILER",
    b"Photoshop",
)


def segment(marker, payload):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(payload) + 2) + payload


def dirty_jpeg(path, paint, orientation=1):
    exif = Image.Exif()
    exif[0x010E], exif[0x0132], exif[0x0112] = "Jane Doe", "1970-01-31", orientation
    exif.get_ifd(0x8825)[1] = "GPSGPS"
    plain = paint(path, exif=exif, comment=b"Jane Doe").read_bytes()
    planted = [
        segment(0xE0, b"JFXX\0\x10THUMBNAIL"),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>Jane Doe</x:xmpmeta>"),
        segment(0xED, b"Photoshop 3.0\0" + b"IPTCIPTC"),
        segment(0xE2, b"ICC_PROFILE\0\x01\x01ICCICC"),
        segment(0xFE, b"Jane Doe"),
    ]
    at = plain.index(b"\xff\xdb")
    late = plain.rindex(b"\xff\xda")
    path.write_bytes(plain[:at] + b"".join(planted) + plain[at:late] + planted[-1] + plain[late:] + b"TRAILER")
    return path


def dirty_png(path, paint):
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe"
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", "Jane Doe")
    info.add_text("Born", "1970-01-31", zip=True)
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta>Jane Doe</x:xmpmeta>")
    paint(path, pnginfo=info, exif=exif, icc_profile=b"ICCICC" * 40, dpi=(72, 72))
    path.write_bytes(path.read_bytes() + b"TRAILER")
    return path


def test_jpeg_loses_metadata_and_no_pixel(tmp_path, paint):
    path = dirty_jpeg(tmp_path / "a.jpg", paint)
    assert all(secret in path.read_bytes() for secret in SECRETS)
    file = read_image(path)
    assert not any(secret in file.clean for secret in SECRETS)
    assert not file.same
    (tmp_path / "b.jpg").write_bytes(file.clean)
    with Image.open(tmp_path / "b.jpg") as cleaned:
        assert np.array_equal(np.array(cleaned), np.array(Image.open(path)))
        assert not cleaned.getexif()
        assert "comment" not in cleaned.info
    assert read_image(tmp_path / "b.jpg").same


def test_jfif_thumbnail_goes(tmp_path, paint):
    plain = paint(tmp_path / "a.jpg").read_bytes()
    assert plain[2:4] == b"\xff\xe0"
    thumb = segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\x02\x02" + b"THUMBNAIL***")
    (tmp_path / "b.jpg").write_bytes(plain[:2] + thumb + plain[20:])
    clean = read_image(tmp_path / "b.jpg").clean
    assert b"THUMB" not in clean
    assert clean[2:20] == segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0")


def test_jpeg_colours_survive_the_adobe_marker(tmp_path, paint):
    """Without APP14 the channels of an RGB JPEG would be taken for YCbCr."""
    path = paint(tmp_path / "a.jpg", keep_rgb=True)
    assert b"Adobe" in path.read_bytes()
    (tmp_path / "b.jpg").write_bytes(read_image(path).clean)
    assert np.array_equal(np.array(Image.open(tmp_path / "b.jpg")), np.array(Image.open(path)))


def test_png_loses_metadata_and_no_pixel(tmp_path, paint):
    path = dirty_png(tmp_path / "a.png", paint)
    file = read_image(path)
    assert b"Jane Doe" in path.read_bytes()
    assert not any(secret in file.clean for secret in SECRETS)
    for chunk in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"pHYs"):
        assert chunk in path.read_bytes()
        assert chunk not in file.clean
    (tmp_path / "b.png").write_bytes(file.clean)
    assert np.array_equal(np.array(Image.open(tmp_path / "b.png")), np.array(Image.open(path)))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_written_trees_hold_no_metadata(tmp_path, paint, orientation):
    jpeg, png = dirty_jpeg(tmp_path / "a.jpg", paint, orientation), dirty_png(tmp_path / "b.png", paint)
    none = np.zeros((0, 4), np.float32)
    write_yolo([Sample(p.stem, p, none, read_image(p).size) for p in (jpeg, png)], tmp_path / "out")
    written = {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert len(written) == 5
    assert not any(secret in data for data in written.values() for secret in SECRETS)
    with Image.open(tmp_path / "out/images/a.jpg") as upright:
        assert upright.size == ((48, 64) if orientation == 6 else (64, 48))
        assert not upright.getexif()


def test_originals_are_not_touched(tmp_path, paint):
    path = dirty_jpeg(tmp_path / "a.jpg", paint)
    before = path.read_bytes()
    write_yolo([Sample("a", path, np.zeros((0, 4), np.float32), (64, 48))], tmp_path / "out")
    assert path.read_bytes() == before
