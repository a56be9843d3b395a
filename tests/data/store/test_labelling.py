"""Frames out, answers back: every format round trip, what a guess may not become, and files that make no sense."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cryptography", reason="install polypfed[edge]")

from polypfed.core.errors import ConfigError, DataError
from polypfed.data import read_yolo
from polypfed.data.store import FORMATS, SampleStore, Vault, export_labels, import_labels

BOX = [4.0, 6.0, 20.0, 16.0]  # of 40 x 20: x 0.3, y 0.55, w 0.4, h 0.5


@pytest.fixture
def store(tmp_path):
    with SampleStore(tmp_path / "store", Vault(tmp_path / "k")) as opened:
        yield opened


@pytest.fixture
def ids(store):
    rng = np.random.default_rng(0)
    return [store.add(rng.integers(0, 256, (20, 40, 3), dtype=np.uint8), 0.2 * i, "r1") for i in range(3)]


def answer(folder, format, ids):
    """A clinician: a box on the first frame, none on the second, the third not looked at."""
    if format == "coco":
        path = folder / "annotations.json"
        about = json.loads(path.read_text())
        about["images"] = about["images"][:2]
        about["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 6, 16, 10]}]
        path.write_text(json.dumps(about))
        return path
    if format == "yolo":
        (folder / "labels" / f"{ids[0]}.txt").write_text("0 0.3 0.55 0.4 0.5\n")
        (folder / "labels" / f"{ids[1]}.txt").write_text("")
        return folder
    tasks = json.loads((folder / "tasks.json").read_text())
    value = {"x": 10, "y": 30, "width": 40, "height": 50, "rotation": 0, "rectanglelabels": ["polyp"]}
    tasks[0]["annotations"] = [{"result": [{"type": "rectanglelabels", "value": value}]}]
    tasks[1]["annotations"] = [{"result": []}]
    tasks[2]["annotations"] = [{"was_cancelled": True, "result": []}]
    (folder / "tasks.json").write_text(json.dumps(tasks))
    return folder / "tasks.json"


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip(store, ids, tmp_path, format):
    guesses = {ids[2]: np.array([[1, 1, 9, 9]], np.float32)}
    assert export_labels(store, tmp_path / "out", format, guesses=guesses) == 3
    assert [r.label for r in store.records()] == ["exported"] * 3
    for frame in ids:
        assert (np.asarray(Image.open(tmp_path / "out" / "images" / f"{frame}.png")) == store.image(frame)).all()
    path = answer(tmp_path / "out", format, ids)
    counts = import_labels(store, path, format, "dr", empty="negative")
    assert counts == {"labelled": 2, "boxes": 1, "skipped": int(format == "label-studio"), "unknown": 0}
    assert store.boxes(ids[0])[0] == pytest.approx(BOX, abs=1e-3)
    assert store.boxes(ids[1]).shape == (0, 4)
    assert [r.id for r in store.trainable()] == ids[:2]
    assert store.records("exported")[0].id == ids[2]
    assert export_labels(store, tmp_path / "next", format) == 1


@pytest.mark.parametrize("format", FORMATS)
def test_a_guess_does_not_come_back_as_an_answer(store, ids, tmp_path, format):
    export_labels(store, tmp_path / "out", format, guesses={i: np.array([BOX], np.float32) for i in ids})
    if format == "yolo":
        with pytest.raises(DataError, match="holds no labels"):
            import_labels(store, tmp_path / "out", format, "dr")
    else:
        path = {"coco": "annotations.json", "label-studio": "tasks.json"}[format]
        assert import_labels(store, tmp_path / "out" / path, format, "dr")["labelled"] == 0
    assert store.trainable(pseudo=True) == []


@pytest.mark.parametrize("format", ["coco", "yolo"])
def test_frames_nobody_looked_at_are_not_negatives(store, ids, tmp_path, format):
    export_labels(store, tmp_path / "out", format)
    counts = import_labels(store, answer(tmp_path / "out", format, ids), format, "dr")
    assert (counts["labelled"], counts["skipped"]) == (1, 1)


def test_the_yolo_folder_is_one_that_training_reads(store, ids, tmp_path):
    export_labels(store, tmp_path / "out", "yolo", store.records()[:2])
    answer(tmp_path / "out", "yolo", ids)
    first = {s.id: s for s in read_yolo(tmp_path / "out")}[ids[0]]
    assert first.boxes[0] == pytest.approx(BOX, abs=1e-3)


def test_guesses_have_their_place(store, ids, tmp_path):
    guesses = {ids[0]: np.array([BOX], np.float32)}
    for format in FORMATS:
        export_labels(store, tmp_path / format, format, guesses=guesses)
    assert json.loads((tmp_path / "coco" / "guesses.json").read_text())[0]["bbox"] == [4, 6, 16, 10]
    line = (tmp_path / "yolo" / "guesses" / f"{ids[0]}.txt").read_text().split()
    assert [float(v) for v in line] == pytest.approx([0, 0.3, 0.55, 0.4, 0.5])
    task = json.loads((tmp_path / "label-studio" / "tasks.json").read_text())[0]
    value = task["predictions"][0]["result"][0]["value"]
    assert [value[k] for k in ("x", "y", "width", "height")] == pytest.approx([10, 30, 40, 50])
    assert task["data"]["image"].endswith(f"images/{ids[0]}.png")


def test_all_or_nothing(store, ids, tmp_path):
    export_labels(store, tmp_path / "out", "yolo")
    answer(tmp_path / "out", "yolo", ids)
    (tmp_path / "out" / "labels" / f"{ids[2]}.txt").write_text("0 0.9 0.5 0.9 0.5\n")
    with pytest.raises(DataError, match=f"{ids[2]}: a box lies outside"):
        import_labels(store, tmp_path / "out", "yolo", "dr", "negative")
    assert store.trainable() == []


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("coco", "{"),
        ("coco", '{"images": [{"id": 1}], "annotations": []}'),
        (
            "coco",
            '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 2, "bbox": [1, 1, 1, 1]}]}',
        ),
        ("coco", '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": [1, 1, 0, 1]}]}'),
        ("label-studio", '{"data": 1}'),
        ("label-studio", '[{"data": {"image": "a"}, "annotations": [{"result": [{"type": "rectanglelabels"}]}]}]'),
        (
            "label-studio",
            '[{"data": {"image": "a"}, "annotations": [{"result": [{"type": "rectanglelabels", "value":'
            ' {"rotation": 9, "x": 1, "y": 1, "width": 1, "height": 1}}]}]}]',
        ),
    ],
)
def test_files_that_make_no_sense(store, ids, tmp_path, format, text):
    (tmp_path / "answers.json").write_text(text)
    with pytest.raises(DataError, match=r"answers\.json"):
        import_labels(store, tmp_path / "answers.json", format, "dr", "negative")


def test_other_mistakes(store, tmp_path):
    with pytest.raises(DataError, match="nothing to label"):
        export_labels(store, tmp_path / "out", "coco")
    with pytest.raises(ConfigError, match="not a format"):
        export_labels(store, tmp_path / "out", "cvat")
    store.add(np.zeros((20, 40, 3), np.uint8), 0.1, "m")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        export_labels(store, tmp_path / "full", "coco")
    (tmp_path / "yolo" / "labels").mkdir(parents=True)
    (tmp_path / "yolo" / "labels" / "gone.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert import_labels(store, tmp_path / "yolo", "yolo", "dr")["unknown"] == 1
    (tmp_path / "yolo" / "labels" / "gone.txt").write_text("0 0.5 0.5\n")
    with pytest.raises(DataError, match="line 1 is not"):
        import_labels(store, tmp_path / "yolo", "yolo", "dr")
