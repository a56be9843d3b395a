import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polypfed.core.errors import DataError
from polypfed.data import read_yolo, write_yolo
from polypfed.data.files import refuse_equal, safe_name
from polypfed.data.sample import Sample

BOX = "0 0.5 0.5 0.25 0.5\n"


def sample(path: Path, boxes: object = (), **about: str) -> Sample:
    return Sample(about.pop("id", path.stem), path, np.array(boxes, np.float32), (64, 48), **about)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_reads_boxes_in_pixels_sorted_by_code_point(tmp_path, make_yolo):
    folder = make_yolo(tmp_path / "d", {"b": BOX, "a": "", "B": BOX * 1})
    (folder / "images/B.jpg").rename(folder / "images/Z.jpg")
    (folder / "labels/B.txt").rename(folder / "labels/Z.txt")
    found = read_yolo(folder, centre="c1", source="s")
    assert [s.id for s in found] == ["Z", "a", "b"]
    assert found[2].boxes.tolist() == [[24, 12, 40, 36]]
    assert found[1].negative
    assert {(s.size, s.centre, s.source) for s in found} == {((64, 48), "c1", "s")}


def test_round_trip_keeps_everything(tmp_path, paint):
    about = {"centre": "Ålesund", "group": "p 1", "source": "s", "name": "x y.jpg", "modality": "NBI"}
    samples = [
        sample(paint(tmp_path / "in/x.jpg"), [[1, 2, 30.25, 40], [0, 0, 64, 48]], **about),
        sample(paint(tmp_path / "in/y.png", seed=1)),
    ]
    write_yolo(samples, tmp_path / "out")
    found = read_yolo(tmp_path / "out")
    for old, new in zip(samples, found, strict=True):
        assert np.allclose(old.boxes, new.boxes, atol=2e-4)
        for name in ("id", "size", "centre", "group", "source", "name", "modality"):
            assert getattr(old, name) == getattr(new, name)
    write_yolo(found, tmp_path / "again")
    assert tree(tmp_path / "out") == tree(tmp_path / "again")


def test_clean_images_are_linked_and_others_written(tmp_path, paint):
    clean, bmp = paint(tmp_path / "in/x.jpg"), paint(tmp_path / "in/y.bmp")
    write_yolo([sample(clean), sample(bmp)], tmp_path / "out")
    assert os.path.samefile(clean, tmp_path / "out/images/x.jpg")
    with Image.open(tmp_path / "out/images/y.png") as png, Image.open(bmp) as source:
        assert np.array_equal(np.array(png), np.array(source))


def test_copies_where_links_are_impossible(tmp_path, paint, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    source = paint(tmp_path / "in/x.jpg")
    write_yolo([sample(source)], tmp_path / "out")
    assert (tmp_path / "out/images/x.jpg").read_bytes() == source.read_bytes()
    assert not os.path.samefile(source, tmp_path / "out/images/x.jpg")


@pytest.mark.parametrize(
    ("spoil", "problem", "named"),
    [
        (lambda d: (d / "labels/a.txt").unlink(), "image without label", "a.jpg"),
        (lambda d: (d / "images/a.jpg").unlink(), "label without image", "a.txt"),
        (lambda d: (d / "labels/a.json").write_text("{}"), "label without image", "a.json"),
        (lambda d: (d / "images/a.jpg").write_bytes(b"\xff\xd8\xff"), "truncated JPEG", "a.jpg"),
        (lambda d: (d / "images/c.txt").write_text(""), "not an image type", "c.txt"),
        (lambda d: (d / "images/train").mkdir(), "a folder where files", "train"),
        (lambda d: (d / "images").rename(d / "pictures"), "no such folder", "images"),
        (lambda d: [p.unlink() for p in (d / "images").iterdir()], "holds no image", "images"),
        (lambda d: (d / "samples.json").write_text("[1]"), "not a list of samples", "samples.json"),
        (lambda d: (d / "samples.json").write_text("{"), "not valid JSON", "samples.json"),
        (lambda d: (d / "samples.json").write_text("[" * 100_000), "not valid JSON", "samples.json"),
    ],
)
def test_problems_are_one_line_with_file_and_remedy(tmp_path, make_yolo, spoil, problem, named):
    folder = make_yolo(tmp_path / "d", {"a": BOX, "b": ""})
    spoil(folder)
    with pytest.raises(DataError, match=problem) as caught:
        read_yolo(folder)
    assert Path(caught.value.where).name == named
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_yolo(tmp_path / "none")


def test_two_images_for_one_label(tmp_path, make_yolo, paint):
    folder = make_yolo(tmp_path / "d", {"a": BOX})
    paint(folder / "images/a.png")
    with pytest.raises(DataError, match="same name as"):
        read_yolo(folder)


def test_names_that_become_equal(tmp_path, make_yolo):
    with pytest.raises(DataError, match="same name as"):
        read_yolo(make_yolo(tmp_path / "d", {"a b": BOX, "a_b": BOX}))


def test_hidden_files_and_caches_are_passed_over(tmp_path, make_yolo):
    folder = make_yolo(tmp_path / "d", {"a": BOX})
    for name in (".DS_Store", "Thumbs.db", "x.cache"):
        (folder / "images" / name).write_bytes(b"\x80\x04\x95")
    (folder / "labels.cache").write_bytes(b"\x80\x04\x95")
    assert len(read_yolo(folder)) == 1


@pytest.mark.parametrize("part", ["images/a.jpg", "labels/a.txt", "images", "samples.json"])
def test_no_link_leads_out(tmp_path, make_yolo, part):
    folder, other = make_yolo(tmp_path / "d", {"a": BOX}), make_yolo(tmp_path / "other", {"a": BOX})
    (other / "samples.json").write_text('{"schema": "polypfed.samples/1", "samples": {}}')
    path = folder / part
    if path.exists():
        path.rename(tmp_path / "away")
    path.symlink_to(other / part)
    with pytest.raises(DataError, match="leads out of the data folder"):
        read_yolo(folder)


def test_a_link_inside_is_fine(tmp_path, make_yolo):
    folder = make_yolo(tmp_path / "d", {"a": BOX})
    (folder / "images/b.jpg").symlink_to("a.jpg")
    (folder / "labels/b.txt").write_text("")
    assert len(read_yolo(folder)) == 2


def test_nothing_half_written_stays(tmp_path, paint):
    good, bad = paint(tmp_path / "in/a.jpg"), paint(tmp_path / "in/b.jpg")
    bad.write_bytes(bad.read_bytes()[:-2])
    with pytest.raises(DataError, match="truncated"):
        write_yolo([sample(good), sample(bad)], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_full_folder_is_not_overwritten(tmp_path, paint):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not empty"):
        write_yolo([sample(paint(tmp_path / "a.jpg"))], tmp_path / "out")
    assert (tmp_path / "out/mine.txt").read_text() == "keep"


def test_a_folder_that_cannot_be_made(tmp_path, paint):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_yolo([sample(paint(tmp_path / "a.jpg"))], tmp_path / "file/out")


def test_progress_counts_to_the_end(tmp_path, make_yolo):
    seen: list[tuple[int, int]] = []
    read_yolo(make_yolo(tmp_path / "d", {"a": BOX, "b": BOX}), progress=lambda *s: seen.append(s))
    assert seen == [(1, 2), (2, 2)]


def test_sidecar_is_readable_json(tmp_path, paint):
    write_yolo([sample(paint(tmp_path / "a.jpg"), centre="c")], tmp_path / "out")
    found = json.loads((tmp_path / "out/samples.json").read_text())
    assert found == {"schema": "polypfed.samples/1", "samples": {"a": {"centre": "c"}}}


@pytest.mark.parametrize(
    ("name", "safe"),
    [("a b", "a_b"), ("a/b", "a_b"), ("..", "_."), (".hid", "_hid"), ("-x", "_x"), ("ü\0", "ü_"), ("u\u0308", "ü")],
)
def test_safe_names(name, safe):
    assert safe_name(name) == safe


def test_unusable_and_equal_names():
    for name in ("", "x" * 121):
        with pytest.raises(DataError, match="not usable"):
            safe_name(name)
    with pytest.raises(DataError, match="'a' and 'A'"):
        refuse_equal(["a", "b", "A"], "here")


@pytest.mark.parametrize(
    "boxes", [[[0, 0, 65, 10]], [[-1, 0, 5, 5]], [[5, 5, 5, 9]], [[0, 0, np.nan, 5]], [[1, 2, 3]], [1, 2, 3, 4]]
)
def test_samples_refuse_impossible_boxes(boxes):
    with pytest.raises(DataError):
        sample(Path("a.jpg"), boxes)


def test_samples_cannot_be_changed():
    one = sample(Path("a.jpg"), [[0, 0, 5, 5]])
    with pytest.raises(ValueError, match="read-only"):
        one.boxes[0] = 1


@pytest.mark.parametrize(
    ("source", "images", "boxes", "negatives"),
    [
        ("kvasir_seg", 1000, 1063, 0),
        ("polypgen_c1", 256, 275, 5),
        ("polypgen_c2", 301, 297, 32),
        ("polypgen_c3", 457, 555, 1),
        ("polypgen_c4", 227, 150, 81),
    ],
)
def test_counts_of_the_real_sources(real_data, source, images, boxes, negatives):
    found = read_yolo(real_data / "real" / source)
    assert len(found) == images
    assert sum(len(s.boxes) for s in found) == boxes
    assert sum(s.negative for s in found) == negatives
