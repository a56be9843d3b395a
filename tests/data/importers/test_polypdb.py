import numpy as np
import pytest

from polypfed.core.errors import DataError
from polypfed.data.importers.coco import read_coco


def coco(count, boxes, category="0"):
    """COCO of images 0..count-1 with boxes {image: [xywh, ...]}."""
    rows = [(image, box) for image, found in boxes.items() for box in found]
    return {
        "images": [{"id": n, "file_name": f"f{n:03d}.jpg", "width": 64, "height": 48} for n in range(count)],
        "annotations": [{"id": k, "image_id": n, "bbox": b, "category_id": 3} for k, (n, b) in enumerate(rows)],
        "categories": [{"id": 3, "name": category, "supercategory": "Defect"}],
    }


@pytest.fixture
def modality(tmp_path, paint, write_json):
    """40 images with a COCO file that ends with image 19; image 5 has no box."""
    root = tmp_path / "PolypDB/WLI"
    for n in range(40):
        paint(root / f"images/f{n:03d}.jpg", seed=n)
    boxes = {n: [[10, 10, 20, 20]] for n in range(20) if n != 5}
    write_json(root / "annotations/wli_train.json", coco(40, boxes))
    return root


def test_cut_off_annotations_are_refused(modality, take):
    for strict in (True, False):
        with pytest.raises(DataError, match="cut off: the last 20 images") as caught:
            take(modality.parent, strict=strict)
        assert caught.value.where.endswith("wli_train.json")


def test_cut_off_annotations_are_never_negatives(modality, take):
    summary, samples = take(modality.parent, skip_unannotated=True)
    assert (summary.dataset, summary.images, summary.negatives, len(summary.skipped)) == ("polypdb", 20, 1, 20)
    assert samples["f005"].negative
    assert np.allclose(samples["f006"].boxes, [[10, 10, 30, 30]], atol=1e-4)
    assert {sample.modality for sample in samples.values()} == {"WLI"}


def test_masks_fill_the_gap(modality, paint_mask, take):
    for n in range(20, 40):
        paint_mask(modality / f"annotations/f{n:03d}.png", boxes=[(5, 5, 25, 25)])
    summary, samples = take(modality.parent)
    assert (summary.images, summary.boxes) == (40, 39)
    assert np.allclose(samples["f039"].boxes, [[5, 5, 25, 25]], atol=1e-4)


def test_centres_with_the_modality_joined(tmp_path, paint, paint_mask, take):
    stem = "PKHL_15 220831_201027_BN087_028"
    for folder in ("Vietnam", "NBI"):
        paint(tmp_path / f"in/{folder}/images/{stem}.jpg")
        paint_mask(tmp_path / f"in/{folder}/annotations/{stem}.jpg", boxes=[(8, 8, 40, 40)])
    summary, samples = take(tmp_path / "in")
    sample = samples[stem.replace(" ", "_")]
    assert (sample.centre, sample.modality, sample.group) == ("polypdb_vietnam", "NBI", "PKHL_15 220831_201027_BN087")
    assert (summary.images, summary.warnings) == (1, ())


def test_coco_by_hand(tmp_path, write_json):
    write_json(tmp_path / "a.json", coco(3, {0: [[1, 2, 3, 4]], 2: [[5, 5, 5, 5], [0, 0, 64, 48]]}))
    found = read_coco(tmp_path / "a.json")
    assert found.boxes["f000"].tolist() == [[1, 2, 4, 6]]
    assert found.boxes["f001"].shape == (0, 4)
    assert found.boxes["f002"].tolist() == [[5, 5, 10, 10], [0, 0, 64, 48]]
    assert not found.unreached


@pytest.mark.parametrize(
    "value", [[], {}, {"images": 1, "annotations": []}, {"images": [{"id": "x"}], "annotations": []}]
)
def test_other_json_is_refused(tmp_path, write_json, value):
    write_json(tmp_path / "a.json", value)
    with pytest.raises(DataError, match="not a COCO file"):
        read_coco(tmp_path / "a.json")


def test_two_categories_are_refused(tmp_path, write_json):
    value = coco(2, {0: [[1, 1, 9, 9]], 1: [[1, 1, 9, 9]]})
    value["annotations"][1]["category_id"] = 4
    write_json(tmp_path / "a.json", value)
    with pytest.raises(DataError, match="more than one category"):
        read_coco(tmp_path / "a.json")
