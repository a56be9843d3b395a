from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polypfed.data import near_duplicates, read_yolo
from polypfed.data.groups import UnionFind, group_samples
from polypfed.data.sample import Sample

NONE = np.zeros((0, 4), np.float32)


def sample(path: Path, **about: str) -> Sample:
    return Sample(path.stem, path, NONE, (64, 48), **about)


@pytest.fixture
def frames(tmp_path, paint):
    """a and a2 show the same, brighter and recompressed; b something else; flat and flat2 nothing."""
    a = paint(tmp_path / "a.png", seed=1)
    pixels = np.array(Image.open(a)).astype(float)
    Image.fromarray(np.clip(pixels * 0.8 + 40, 0, 255).astype(np.uint8)).save(tmp_path / "a2.jpg", quality=60)
    paint(tmp_path / "b.png", seed=2)
    for name in ("flat.png", "flat2.png"):
        Image.new("RGB", (64, 48), (90, 10, 10)).save(tmp_path / name)
    return [sample(tmp_path / name) for name in ("a.png", "a2.jpg", "b.png", "flat.png", "flat2.png")]


def test_twins_are_found_and_flat_frames_are_not_twins(frames):
    assert near_duplicates(frames) == [(0, 1)]


def test_blocks_do_not_change_the_pairs(frames, monkeypatch):
    many = frames * 3
    whole = sorted(near_duplicates(many))
    monkeypatch.setattr("polypfed.data.groups._BLOCK", 2)
    assert sorted(near_duplicates(many)) == whole
    assert (0, 5) in whole


def test_groups_join_declared_ones_and_twins(frames):
    a, a2, b, flat, flat2 = frames
    declared = [a, a2, replace(b, group="p1"), replace(flat, group="p1"), replace(flat2, group="p1", centre="x")]
    assert group_samples(declared) == [[0, 1], [2, 3], [4]]
    assert group_samples(declared, near=False) == [[0], [1], [2, 3], [4]]


def test_twins_with_declared_groups_are_left_alone(frames):
    a, a2, *_ = frames
    assert group_samples([replace(a, group="p1"), replace(a2, group="p2")]) == [[0], [1]]


def test_union_find():
    sets = UnionFind(6)
    for i, j in ((4, 5), (1, 4), (2, 0)):
        sets.join(i, j)
    assert sets.groups() == [[0, 2], [1, 4, 5], [3]]


@pytest.mark.parametrize(
    ("source", "twins"),
    [("kvasir_seg", 8), ("polypgen_c1", 6), ("polypgen_c2", 12), ("polypgen_c3", 4), ("polypgen_c4", 18)],
)
def test_measured_twins_of_the_real_sources(real_data, source, twins):
    pairs = near_duplicates(read_yolo(real_data / "real" / source))
    assert len({index for pair in pairs for index in pair}) == twins
