import numpy as np
import pytest

from polypfed.core.errors import DataError
from polypfed.data.importers.polypgen import place


@pytest.mark.parametrize(
    ("stem", "found"),
    [
        ("C3_EndoCV2021_00108", ("c3", "")),
        ("EndoCV2021_C5_0100024", ("c5", "")),
        ("EndoCV2021_C6_0100020", ("c6", "")),
        ("EndoCV2021_001010", ("c2", "")),
        ("31_endocv2021_positive_329 2", ("c4", "c4-31")),
        ("35_endocv2021_negative_1005", ("c4", "c4-35")),
        ("125OLCV1_100H0003", ("c1", "c1-125")),
        ("100S0007", ("c1", "")),
        ("100S00071", None),
        ("EndoCV2021_C4_1", None),
        ("IMG_1", None),
    ],
)
def test_centre_and_group_follow_from_the_name(stem, found):
    assert place(stem) == found


@pytest.fixture
def root(tmp_path, paint, paint_mask):
    """Centre 4: a frame with a polyp, one without, one with a speck; their names say otherwise, as in the set."""
    base = tmp_path / "in/PolypGen2021_MultiCenterData_v3/data_C4"
    frames = {
        "1_endocv2021_negative_10": [(5, 5, 30, 30)],
        "1_endocv2021_positive_11": [],
        "2_endocv2021_positive_12 2": [(9, 9, 11, 11)],
    }
    for seed, (stem, boxes) in enumerate(frames.items()):
        paint(base / f"images_C4/{stem}.jpg", seed=seed)
        paint_mask(base / f"masks_C4/{stem}_mask.png", boxes=boxes)
    return base.parent


def text(root, stem, value):
    (root / "data_C4/bbox_C4").mkdir(exist_ok=True)
    (root / f"data_C4/bbox_C4/{stem}_mask.txt").write_text(value)


def test_masks_decide_and_specks_are_counted(root, take):
    text(root, "1_endocv2021_negative_10", "")
    summary, samples = take(root.parent)
    assert (summary.dataset, summary.images, summary.boxes) == ("polypgen", 3, 1)
    assert (summary.negatives, summary.specks, summary.dropped) == (2, 1, 1)
    assert np.allclose(samples["1_endocv2021_negative_10"].boxes, [[5, 5, 30, 30]], atol=1e-4)
    spaced = samples["2_endocv2021_positive_12_2"]
    assert spaced.name == "2_endocv2021_positive_12 2.jpg"
    assert (spaced.centre, spaced.group, spaced.source) == ("polypgen_c4", "c4-2", "polypgen")


def test_text_where_there_is_no_mask(root, take):
    for path in (root / "data_C4/masks_C4").iterdir():
        path.unlink()
    text(root, "1_endocv2021_negative_10", "polyp 5 6 30 31\npolyp 40 6 60 31\n\n")
    text(root, "1_endocv2021_positive_11", "")
    with pytest.raises(DataError, match="neither mask nor boxes"):
        take(root)
    summary, samples = take(root, strict=False)
    assert np.allclose(samples["1_endocv2021_negative_10"].boxes, [[5, 6, 30, 31], [40, 6, 60, 31]], atol=1e-4)
    assert samples["1_endocv2021_positive_11"].negative
    assert summary.skipped == (("2_endocv2021_positive_12 2.jpg", "neither mask nor boxes"),)


@pytest.mark.parametrize("value", ["polyp 1 2 3\n", "polyp a b c d\n", "1 2 3 4\n"])
def test_other_text_is_refused(root, take, value):
    (root / "data_C4/masks_C4/1_endocv2021_positive_11_mask.png").unlink()
    text(root, "1_endocv2021_positive_11", value)
    with pytest.raises(DataError, match="xmin ymin xmax ymax"):
        take(root)


def test_a_name_in_the_wrong_folder(root, paint, paint_mask, take):
    paint(root / "data_C4/images_C4/EndoCV2021_001010.jpg")
    with pytest.raises(DataError, match="named like centre c2, but in the folder of c4"):
        take(root)


def test_a_name_of_no_centre(root, paint, take):
    paint(root / "data_C4/images_C4/holiday.jpg")
    with pytest.raises(DataError, match="fits no centre"):
        take(root)


def test_what_is_not_understood_is_said(root, take):
    (root / "sequenceData").mkdir()
    assert take(root)[0].warnings == ("left out, not single frames: sequenceData",)


def test_copies_without_centre_folders(root, take):
    flat = root.parent / "flat"
    (root / "data_C4").rename(flat)
    (flat / "images_C4").rename(flat / "images")
    (flat / "masks_C4").rename(flat / "masks")
    summary, samples = take(flat)
    assert summary.dataset == "polypgen"
    assert {sample.centre for sample in samples.values()} == {"polypgen_c4"}


def test_odd_sizes_of_centre_5_are_one_group_each(tmp_path, paint, paint_mask, take):
    for n, size in enumerate([(64, 48), (64, 48), (40, 30), (40, 30), (40, 32)]):
        paint(tmp_path / f"in/data_C5/images_C5/EndoCV2021_C5_{n}.jpg", *size, seed=n)
        paint_mask(tmp_path / f"in/data_C5/masks_C5/EndoCV2021_C5_{n}_mask.jpg", *size)
    _, samples = take(tmp_path / "in")
    assert [sample.group for sample in samples.values()] == ["", "", "c5-40x30", "c5-40x30", "c5-40x32"]


def test_native_files(native, real_data, take):
    summary, samples = take(native / "polypgen")
    assert (summary.images, summary.negatives, summary.specks) == (19, 6, 1)
    assert {s.centre for s in samples.values()} == {f"polypgen_c{n}" for n in (1, 2, 3, 4)}
    assert samples["31_endocv2021_positive_329_2"].name == "31_endocv2021_positive_329 2.jpg"
    for sample in samples.values():
        published = (real_data / f"real/{sample.centre}/labels/{sample.id}.txt").read_text()
        wanted = np.array([line.split()[1:] for line in published.splitlines()], float).reshape(-1, 4)
        edges = np.hstack([wanted[:, :2] - wanted[:, 2:] / 2, wanted[:, :2] + wanted[:, 2:] / 2])
        assert np.abs(sample.boxes / [*sample.size, *sample.size] - edges).max(initial=0) < 4e-6


def test_native_text_files_agree_with_the_masks(native, tmp_path, take):
    _, by_mask = take(native / "polypgen")
    root = tmp_path / "texts"
    for path in sorted((native / "polypgen").rglob("*.*")):
        if "masks_" not in path.parent.name:
            target = root / path.parent.parent.name / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    summary, by_text = take(root, strict=False)
    assert len(summary.skipped) == 3
    for name, sample in by_text.items():
        assert np.allclose(sorted(sample.boxes.tolist()), sorted(by_mask[name].boxes.tolist()), atol=5e-3)
