import json

import numpy as np
import pytest
from PIL import Image

from polypfed.core.errors import ConfigError, DataError
from polypfed.data import import_dataset
from polypfed.data.images import open_image

STEMS = ("cju0qkwl35piu0993l0dewei2", "cju0roawvklrq0799vmjorwfv")


@pytest.fixture
def kvasir(tmp_path, paint, paint_mask):
    for seed, stem in enumerate(STEMS):
        paint(tmp_path / f"in/images/{stem}.jpg", seed=seed)
        paint_mask(tmp_path / f"in/masks/{stem}.jpg", boxes=[(8, 8, 40, 40)])
    return tmp_path / "in"


def test_unknown_name_and_layout(tmp_path):
    with pytest.raises(ConfigError, match="Use auto or one of kvasir_seg, polypgen"):
        import_dataset("kvasir", tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="no such folder"):
        import_dataset("auto", tmp_path / "none", tmp_path / "out")
    for name in ("auto", "etis"):
        with pytest.raises(DataError, match="do not look like"):
            import_dataset(name, tmp_path, tmp_path / "out")


def test_two_data_sets_in_one_folder(tmp_path, kvasir, paint, paint_mask):
    paint(tmp_path / "b/images/1.png", 384, 288)
    paint_mask(tmp_path / "b/masks/1.png", 384, 288)
    with pytest.raises(DataError, match=r"more than one data set: cvc_clinicdb in .*kvasir_seg in"):
        import_dataset("auto", tmp_path, tmp_path / "out")
    assert import_dataset("kvasir_seg", tmp_path, tmp_path / "out").images == 2


def test_corrupt_image_ends_a_strict_import_without_a_trace(tmp_path, kvasir):
    broken = kvasir / f"images/{STEMS[1]}.jpg"
    broken.write_bytes(broken.read_bytes()[:-2])
    with pytest.raises(DataError, match="end marker is missing"):
        import_dataset("auto", kvasir, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
    summary = import_dataset("auto", kvasir, tmp_path / "out", strict=False)
    assert [name for name, _ in summary.skipped] == [broken.name]
    assert str(summary) == "kvasir_seg: 1 images, 1 boxes, 0 negatives, 1 skipped"


def test_jpeg_pixels_are_not_compressed_again(tmp_path, kvasir, take):
    _, samples = take(kvasir)
    for stem, sample in samples.items():
        with Image.open(kvasir / f"images/{stem}.jpg") as source:
            assert np.array_equal(open_image(sample.image), np.array(source))


def test_metadata_and_orientation(tmp_path, paint, paint_mask, take):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "Jane Doe"
    paint(tmp_path / f"in/images/{STEMS[0]}.jpg", exif=exif, comment=b"Jane Doe")
    paint_mask(tmp_path / f"in/masks/{STEMS[0]}.jpg", 48, 64, boxes=[(8, 8, 40, 40)])
    _, samples = take(tmp_path / "in")
    assert samples[STEMS[0]].size == (48, 64)
    assert b"Jane" not in samples[STEMS[0]].image.read_bytes()


def test_painting_black_warns_of_touched_boxes(kvasir, take):
    summary, samples = take(kvasir, blacken=[(0, 0, 0.25, 0.25), (0.9, 0.9, 1, 1)])
    assert (summary.covered, summary.warnings) == (2, ("2 boxes are touched by what was painted black",))
    pixels = open_image(samples[STEMS[0]].image)
    assert pixels[:10, :14].max() < 30
    assert pixels[20:40, 20:40].max() > 60
    assert take(kvasir, blacken=[(0.9, 0.9, 1, 1)])[0].covered == 0
    with pytest.raises(DataError, match="shares of the image"):
        take(kvasir, blacken=[(0, 0, 20, 20)])


@pytest.mark.parametrize(("first", "second"), [("a b.jpg", "a_b.jpg"), ("a.jpg", "A.jpg"), ("a.jpg", "a.png")])
def test_names_that_become_equal(tmp_path, paint, first, second):
    paint(tmp_path / "in/images" / first)
    paint(tmp_path / "in/images" / second)
    boxes = {"xmin": 1, "ymin": 1, "xmax": 30, "ymax": 30}
    listed = {name.rpartition(".")[0]: {"bbox": [boxes]} for name in (first, second)}
    (tmp_path / "in/kvasir_bboxes.json").write_text(json.dumps(listed))
    with pytest.raises(DataError, match=r"the same name"):
        import_dataset("kvasir_seg", tmp_path / "in", tmp_path / "out")


def test_a_corrupt_first_image_does_not_hide_the_data_set(tmp_path, paint, paint_mask, take):
    for n in (1, 2):
        paint(tmp_path / f"in/images/{n}.png", 384, 288, seed=n)
        paint_mask(tmp_path / f"in/masks/{n}.png", 384, 288)
    (tmp_path / "in/images/1.png").write_bytes(b"")
    assert take(tmp_path / "in", strict=False)[0].dataset == "cvc_clinicdb"


def test_links_out_of_the_data_set_are_refused(tmp_path, kvasir):
    image = kvasir / f"images/{STEMS[0]}.jpg"
    image.rename(tmp_path / "away.jpg")
    image.symlink_to(tmp_path / "away.jpg")
    with pytest.raises(DataError, match="leads out"):
        import_dataset("auto", kvasir, tmp_path / "out")


def test_nothing_usable_is_an_error_even_if_lenient(tmp_path, kvasir):
    for path in (kvasir / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no usable image"):
        import_dataset("auto", kvasir, tmp_path / "out", strict=False)
    assert not (tmp_path / "out").exists()


def test_progress(tmp_path, kvasir):
    seen = []
    import_dataset("auto", kvasir, tmp_path / "out", progress=lambda *s: seen.append(s))
    assert seen == [(1, 2), (2, 2)]
