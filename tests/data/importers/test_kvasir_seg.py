import numpy as np
import pytest
from PIL import Image

from polypfed.core.errors import DataError

A, B = "cju0qkwl35piu0993l0dewei2", "cju0roawvklrq0799vmjorwfv"


def entry(*boxes, size=(64, 48)):
    rows = [dict(zip(("label", "xmin", "ymin", "xmax", "ymax"), ("polyp", *box), strict=True)) for box in boxes]
    return {"width": size[0], "height": size[1], "bbox": rows}


def test_masks_beat_boxes(tmp_path, paint, paint_mask, write_json, take):
    root = tmp_path / "some name"
    paint(root / f"images/{A}.jpg")
    paint_mask(root / f"masks/{A}.jpg", boxes=[(8, 8, 40, 32)], quality=70)
    write_json(root / "kavsir_bboxes.json", {A: entry((0, 0, 20, 20)), B: entry()})
    summary, samples = take(tmp_path)
    assert summary.dataset == "kvasir_seg"
    assert np.abs(samples[A].boxes - [[8, 8, 40, 32]]).max() <= 1
    assert summary.warnings == (f"1 JSON entries without an image, such as '{B}'",)


@pytest.mark.parametrize("name", ["kavsir_bboxes.json", "kvasir_bboxes.json"])
def test_boxes_without_masks(tmp_path, paint, write_json, take, name):
    paint(tmp_path / f"in/images/{A}.jpg")
    paint(tmp_path / f"in/images/{B}.jpg")
    write_json(tmp_path / "in" / name, {A: entry((10, 11, 30, 31), (0, 0, 3, 40)), B: entry()})
    summary, samples = take(tmp_path / "in")
    assert np.allclose(samples[A].boxes, [[10, 11, 30, 31]], atol=1e-4)
    assert samples[B].negative
    assert summary.dropped == 1


def test_boxes_end_at_the_border_and_once(tmp_path, paint, write_json, take):
    paint(tmp_path / f"in/images/{A}.jpg")
    write_json(tmp_path / "in/kavsir_bboxes.json", {A: entry((-1, 10, 65, 30), (-1, 10, 65, 30))})
    assert np.allclose(take(tmp_path / "in")[1][A].boxes, [[0, 10, 64, 30]], atol=1e-4)


def test_absent_from_the_json_is_not_a_negative(tmp_path, paint, write_json, take):
    paint(tmp_path / f"in/images/{A}.jpg")
    paint(tmp_path / f"in/images/{B}.jpg")
    write_json(tmp_path / "in/kavsir_bboxes.json", {A: entry((10, 11, 30, 31))})
    with pytest.raises(DataError, match=r"neither mask nor boxes \(1 such images\)") as caught:
        take(tmp_path / "in")
    assert caught.value.where.endswith(f"{B}.jpg")
    summary, samples = take(tmp_path / "in", strict=False)
    assert list(samples) == [A]
    assert summary.skipped == ((f"{B}.jpg", "neither mask nor boxes"),)


def test_three_channel_masks(tmp_path, paint, take):
    paint(tmp_path / f"in/images/{A}.jpg")
    mask = np.zeros((48, 64, 3), np.uint8)
    mask[8:40, 16:48] = 255
    (tmp_path / "in/masks").mkdir()
    Image.fromarray(mask).save(tmp_path / f"in/masks/{A}.jpg", quality=95)
    assert np.abs(take(tmp_path / "in")[1][A].boxes - [[16, 8, 48, 40]]).max() <= 1


@pytest.mark.parametrize("text", ["[]", '{"a": 1}', '{"a": {"bbox": [{"xmin": 1}]}}', "{"])
def test_other_json_is_refused(tmp_path, paint, take, text):
    paint(tmp_path / f"in/images/{A}.jpg")
    (tmp_path / "in/kavsir_bboxes.json").write_text(text)
    with pytest.raises(DataError, match=r"kavsir_bboxes\.json"):
        take(tmp_path / "in")


def test_native_files(native, real_data, take):
    summary, samples = take(native / "kvasir_seg")
    assert (summary.dataset, summary.images, summary.boxes) == ("kvasir_seg", 7, 8)
    assert samples[B].size == (622, 528)
    for sample in samples.values():
        published = (real_data / f"real/kvasir_seg/labels/{sample.id}.txt").read_text()
        wanted = np.array([line.split()[1:] for line in published.splitlines()], float)
        edges = np.hstack([wanted[:, :2] - wanted[:, 2:] / 2, wanted[:, :2] + wanted[:, 2:] / 2])
        assert np.abs(sample.boxes / [*sample.size, *sample.size] - edges).max() < 4e-6
