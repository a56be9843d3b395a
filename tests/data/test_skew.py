from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polypfed.data.sample import Sample
from polypfed.data.skew import BUCKETS, bucket, divergence, skew


def sample(*shares, path="a.jpg"):
    """Boxes of given shares of a 100 x 100 image, full width."""
    boxes = np.array([[0, 0, 100, 100 * share] for share in shares], np.float32).reshape(-1, 4)
    return Sample("a", Path(path), boxes, (100, 100))


@pytest.mark.parametrize(
    ("shares", "name"),
    [
        ((), "none"),
        ((0.029,), "one S"),
        ((0.03,), "one M"),
        ((0.149,), "one M"),
        ((0.15,), "one L"),
        ((0.01, 0.02), "more S"),
        ((0.01, 0.1), "more M"),
        ((0.5, 0.01, 0.02), "more L"),
    ],
)
def test_buckets(shares, name):
    assert BUCKETS[bucket(sample(*shares))] == name


def test_divergence_by_hand():
    """p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4): (log2(4/3) + 1/2 log2(2/3) + 1/2 log2(2)) / 2."""
    expected = (np.log2(4 / 3) + 0.5 * np.log2(2 / 3) + 0.5) / 2
    assert divergence(np.array([7, 0]), np.array([2, 2])) == pytest.approx(expected)
    assert divergence(np.array([1, 3]), np.array([2, 6])) == 0


def test_figures_by_hand():
    figures = skew({"a": [sample(), sample(0.1), sample(0.3)], "b": [sample(0.1)]})
    a, b = figures["sites"]["a"], figures["sites"]["b"]
    assert (a["images"], a["boxes"], a["negatives"], a["box_area"], a["size"]) == (3, 2, 0.333333, 0.2, 1.5)
    assert (b["negatives"], b["size"]) == (0, 0.5)
    assert figures["divergence"] == pytest.approx((3 * a["divergence"] + b["divergence"]) / 4, abs=1e-6)


def test_a_site_without_boxes():
    assert skew({"a": [sample()], "b": [sample(0.2)]})["sites"]["a"]["box_area"] is None


def test_appearance(tmp_path):
    for name, grey in (("dark", 50), ("light", 150)):
        Image.new("RGB", (100, 100), (grey, grey, grey)).save(tmp_path / f"{name}.png")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 100, (100, 100, 3), dtype=np.uint8)).save(tmp_path / "noisy.png")
    sites = {name: [sample(path=tmp_path / f"{name}.png")] for name in ("dark", "light", "noisy")}
    found = skew(sites, appearance=True)["sites"]
    assert found["noisy"]["sharpness"] == pytest.approx(2**0.5, abs=1e-4)  # (2, -1, -1) / sqrt(2)
    assert found["light"]["colour"] == pytest.approx(3**0.5 * 2**0.5, abs=0.02)
