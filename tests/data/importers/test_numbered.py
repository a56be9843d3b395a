from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from polypfed.core.errors import DataError
from polypfed.data.images import open_image
from polypfed.data.importers.cvc_clinicdb import sequence

SIZES = {"cvc_clinicdb": (384, 288), "cvc_colondb": (574, 500), "etis": (1225, 966)}


@pytest.mark.parametrize("name", SIZES)
def test_copies_are_told_apart_by_size(tmp_path, paint, paint_mask, take, name):
    paint(tmp_path / "in/images/7.png", *SIZES[name])
    paint_mask(tmp_path / "in/masks/7.png", *SIZES[name], boxes=[(20, 30, 120, 130)])
    summary, samples = take(tmp_path / "in")
    assert summary.dataset == name
    assert np.allclose(samples["7"].boxes, [[20, 30, 120, 130]], atol=0.01)
    assert samples["7"].group == ("seq-1" if name == "cvc_clinicdb" else "")
    assert [("near-duplicates" in warning) for warning in summary.warnings] == [True] * (name != "cvc_clinicdb")


def test_a_copy_of_another_size_has_to_be_named(tmp_path, paint, paint_mask, take):
    paint(tmp_path / "in/images/7.png")
    paint_mask(tmp_path / "in/masks/7.png", boxes=[(20, 20, 40, 40)])
    with pytest.raises(DataError, match=r"any data set known here\. Name the data set"):
        take(tmp_path / "in")
    assert take(tmp_path / "in", "etis")[0].boxes == 1


def test_colondb_takes_polyp_masks_only(tmp_path, paint, paint_mask, take):
    for n in (1, 2):
        paint(tmp_path / f"CVC-ColonDB/{n}.bmp", 574, 500, seed=n)
        paint_mask(tmp_path / f"CVC-ColonDB/p{n}.bmp", 574, 500, boxes=[(100, 100, 200, 200 + n)])
        for other in "sc":
            paint_mask(tmp_path / f"CVC-ColonDB/{other}{n}.bmp", 574, 500, boxes=[(0, 0, 574, 500)])
    summary, samples = take(tmp_path / "CVC-ColonDB")
    assert (summary.dataset, summary.images, summary.boxes) == ("cvc_colondb", 2, 2)
    assert np.allclose(samples["2"].boxes, [[100, 100, 200, 202]], atol=0.01)
    assert samples["2"].image.suffix == ".png"


def test_missing_masks_are_not_negatives(tmp_path, paint, paint_mask, take):
    for n in (1, 2):
        paint(tmp_path / f"in/Original/{n}.png", 384, 288, seed=n)
    paint_mask(tmp_path / "in/Ground Truth/1.png", 384, 288)
    with pytest.raises(DataError, match="neither mask nor boxes"):
        take(tmp_path / "in")
    summary, samples = take(tmp_path / "in", strict=False)
    assert samples["1"].negative
    assert [name for name, _ in summary.skipped] == ["2.png"]


def test_mask_of_another_size(tmp_path, paint, paint_mask, take):
    paint(tmp_path / "in/original/1.png", 384, 288)
    paint_mask(tmp_path / "in/ground truth/1.png", 288, 384)
    with pytest.raises(DataError, match="the mask is 288 x 384, its image 384 x 288"):
        take(tmp_path / "in")


def test_grey_tiff_is_refused(tmp_path, paint_mask, take):
    paint_mask(tmp_path / "in/Original/1.tif", 384, 288, boxes=[(9, 9, 90, 90)])
    paint_mask(tmp_path / "in/Ground Truth/1.tif", 384, 288, boxes=[(9, 9, 90, 90)])
    with pytest.raises(DataError, match="grey image where colour"):
        take(tmp_path / "in")


def test_sequences_of_clinicdb_cover_all_frames():
    found = [sequence(frame) for frame in range(1, 613)]
    assert len(set(found)) == 29
    assert sum(a != b for a, b in pairwise(found)) == 28
    assert found[77:79] == ["seq-4", "seq-5"]  # 78 is the last of the fourth
    assert sequence(0) == ""


def test_native_tiffs_come_out_in_colour(native, take):
    summary, samples = take(native / "cvc_clinicdb")
    assert (summary.dataset, summary.images, summary.boxes) == ("cvc_clinicdb", 3, 5)
    assert {name: sample.group for name, sample in samples.items()} == {"1": "seq-1", "70": "seq-4", "547": "seq-27"}
    for sample in samples.values():
        with Image.open(sample.image) as image:  # a decoder that is not ours
            red, green, blue = (np.array(image)[..., c].astype(float) for c in range(3))
        assert red.mean() > green.mean() > blue.mean()
        assert open_image(sample.image).shape == (288, 384, 3)
