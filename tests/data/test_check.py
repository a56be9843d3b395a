from pathlib import Path

import pytest

from polypfed.core.errors import DataError
from polypfed.data import check_dataset, partition, read_yolo

BOX = "0 0.5 0.5 0.25 0.5\n"


def told(check):
    return {(finding.level, Path(finding.where.split(",")[0]).name) for finding in check.findings}


def test_a_good_folder(tmp_path, make_yolo):
    check = check_dataset(make_yolo(tmp_path / "d", {"a": BOX, "b": "", "c": BOX + "0 .1 .1 .1 .1\n"}))
    assert (check.images, check.boxes, check.negatives, check.findings) == (3, 3, 1, ())
    assert check.ok


def test_all_problems_at_once(tmp_path, make_yolo, paint):
    folder = make_yolo(tmp_path / "d", dict.fromkeys("abcdefg", BOX))
    (folder / "labels/a.txt").unlink()
    (folder / "images/b.jpg").unlink()
    (folder / "labels/c.txt").write_text(BOX + "1 .5 .5 .1 .1\n")
    jpeg = (folder / "images/d.jpg").read_bytes()
    (folder / "images/d.jpg").write_bytes(jpeg[:-30])
    at = jpeg.index(b"\xff\xdb") + 5
    (folder / "images/e.jpg").write_bytes(jpeg[: at - 5] + jpeg[at + 128 :])  # no table: only decoding shows it
    paint(folder / "images/f.jpg", comment=b"name")
    (folder / "labels.cache").write_bytes(b"")
    seen = []
    check = check_dataset(folder, progress=lambda *s: seen.append(s))
    assert told(check) == {
        ("error", "a.jpg"), ("error", "b.txt"), ("error", "c.txt"), ("error", "d.jpg"), ("error", "e.jpg"),
        ("warning", "f.jpg"), ("warning", "labels.cache"),
    }  # fmt: skip
    assert not check.ok
    assert (check.images, check.boxes) == (2, 2)
    assert seen == [(n, 6) for n in range(1, 7)]
    assert all(str(finding).count("\n") == 0 for finding in check.findings)


def test_a_partition_with_its_manifest(tmp_path, make_yolo):
    samples = read_yolo(make_yolo(tmp_path / "in", {f"i{n}": BOX for n in range(8)}), centre="c")
    manifest = partition(samples, tmp_path / "fed", "iid", 2)
    check = check_dataset(tmp_path / "fed")
    assert (check.images, check.boxes, check.ok) == (8, 8, True)
    assert check_dataset(tmp_path / "fed/site-1").images == 4
    manifest.entries[0].paths(tmp_path / "fed")[1].write_text("")
    assert told(check_dataset(tmp_path / "fed")) == {("error", manifest.entries[0].file.replace("jpg", "txt"))}


def test_a_broken_manifest_is_an_error(tmp_path, make_yolo):
    partition(read_yolo(make_yolo(tmp_path / "in", {f"i{n}": BOX for n in range(4)})), tmp_path / "fed", "iid", 1)
    (tmp_path / "fed/manifest.json").write_text("{}")
    assert told(check_dataset(tmp_path / "fed")) == {("error", "manifest.json")}


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        check_dataset(tmp_path / "none")
    assert not check_dataset(tmp_path).ok


def test_a_site_without_val(tmp_path, make_yolo):
    make_yolo(tmp_path / "site/train", {"a": BOX})
    check = check_dataset(tmp_path / "site")
    assert (check.images, check.ok) == (1, False)
