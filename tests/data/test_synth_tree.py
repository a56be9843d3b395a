"""Federations on disk: a partition like any other, whole or absent."""

import json

import numpy as np
import pytest

from polypfed.core.errors import ConfigError, DataError, MissingExtraError
from polypfed.data import Manifest, open_image, open_partition
from polypfed.data.synth import frame, synth
from polypfed.data.synth.seeds import cv

pytest.importorskip("cv2")


def tree(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("synth") / "data"
    seen = []
    synth(root, sites=2, train=9, val=5, size=96, seed=3, progress=lambda done, total: seen.append((done, total)))
    return root, seen


def test_it_opens_as_a_partition(made):
    root, _ = made
    sites = open_partition(root)
    assert list(sites) == ["site-1", "site-2"]
    for site in sites.values():
        assert [len(site.samples(split)) for split in ("train", "val")] == [9, 5]
        assert site.data_yaml.read_text() == "train: train/images\nval: val/images\nnames:\n  0: polyp\n"
    Manifest.read(root).verify(root)


def test_progress_counts_to_the_end(made):
    assert made[1] == [(k + 1, 28) for k in range(28)]


def test_no_patient_is_in_train_and_val(made):
    root, _ = made
    for site in open_partition(root).values():
        groups = [{sample.group for sample in site.samples(split)} for split in ("train", "val")]
        assert all(groups)
        assert not groups[0] & groups[1]


def test_files_hold_the_frames(made):
    """Pixels up to JPEG, boxes up to the six digits of a label."""
    root, _ = made
    for sample in open_partition(root)["site-2"].samples("train"):
        patient, sequence, index = sample.id.split("-")[-3:]
        wanted = frame("site-2", patient, int(sequence[1:]), int(index), 96, seed=3)
        assert np.abs(sample.boxes - wanted.boxes).max(initial=0) < 1e-3
        stored = open_image(sample.image)
        assert stored.shape == wanted.image.shape
        assert np.abs(stored.astype(int) - wanted.image).mean() < 8


def test_the_manifest_tells_negatives_and_version(made):
    root, _ = made
    found = json.loads((root / "manifest.json").read_text())
    for name, site in open_partition(root).items():
        samples = site.samples("train") + site.samples("val")
        share = sum(len(sample.boxes) == 0 for sample in samples) / 14
        assert found["skew"]["sites"][name]["negatives"] == pytest.approx(share, abs=1e-6)
    assert found["parameters"] == {"generator": 1, "sites": ["site-1", "site-2"], "train": 9, "val": 5, "size": 96}


def test_same_seed_same_bytes_and_sites_stand_alone(made, tmp_path):
    root, _ = made
    synth(tmp_path / "again", sites=["site-2"], train=9, val=5, size=96, seed=3)
    first = {name: data for name, data in tree(root).items() if name.startswith("site-2")}
    again = {name: data for name, data in tree(tmp_path / "again").items() if name != "manifest.json"}
    assert first == again
    synth(tmp_path / "other", sites=["site-2"], train=9, val=5, size=96, seed=4)
    assert tree(tmp_path / "other") != tree(tmp_path / "again")


def test_broken_off_leaves_nothing(tmp_path):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synth(tmp_path / "data", sites=1, train=4, val=2, size=64, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="exists and is not empty"):
        synth(tmp_path, sites=1, train=1, val=1, size=64)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"sites": 0}, "at least one site"),
        ({"sites": ["a", "test"]}, "called 'test'"),
        ({"train": 0}, "train: 0 images"),
        ({"val": -1}, "val: -1 images"),
        ({"size": 32}, "size: 32 pixels, must be 64 to 640"),
    ],
)
def test_bad_numbers(tmp_path, options, problem):
    with pytest.raises(ConfigError, match=problem):
        synth(tmp_path / "data", **{"sites": 1, "train": 1, "val": 1, "size": 64, **options})
    assert not (tmp_path / "data").exists()


def test_equal_names_are_refused(tmp_path):
    with pytest.raises(DataError, match="same name"):
        synth(tmp_path / "data", sites=["Oslo", "oslo"], train=1, val=1, size=64)


def test_without_opencv_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    cv.cache_clear()
    with pytest.raises(MissingExtraError, match=r"polypfed\[yolo\]"):
        synth(tmp_path / "data", sites=1, train=1, val=1, size=64)
    assert not (tmp_path / "data").exists()
