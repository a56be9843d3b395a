"""Frames: reproducible one by one, boxes exact, polyps hidden too far not drawn, sites unlike each other."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from polypfed.core.errors import ConfigError
from polypfed.data.synth import frame, style
from polypfed.data.synth import render as rendering

cv2 = pytest.importorskip("cv2")

SITES = ("site-1", "site-2", "site-3", "site-4")


def frames(count, size=128, sites=SITES):
    return [frame(site, f"p{k:04d}", k % 3, k % 2, size) for site in sites for k in range(count)]


def digest(made):
    return hashlib.sha256(made.image.tobytes() + made.boxes.tobytes() + made.masks.tobytes()).hexdigest()


def test_shapes_and_types():
    for site in SITES:
        made = frame(site, "p0000", 0, 0, 160)
        height, width = made.image.shape[:2]
        assert (width, made.image.dtype, made.boxes.dtype) == (160, np.uint8, np.float32)
        assert made.masks.shape == (len(made.boxes), height, width)


def test_a_frame_needs_no_frame_before_it():
    """Alone in a fresh process, with another hash seed and one thread, against in a row with others."""
    in_row = [digest(frame("site-2", "p0003", 1, index, 96)) for index in range(3)]
    code = (
        "import cv2, hashlib; cv2.setNumThreads(1); from polypfed.data.synth import frame;"
        "m = frame('site-2', 'p0003', 1, 2, 96);"
        "print(hashlib.sha256(m.image.tobytes() + m.boxes.tobytes() + m.masks.tobytes()).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    alone = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert alone.stdout.strip() == in_row[2]
    assert len(set(in_row)) == 3


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_do_not_change_pixels(threads):
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(threads)
        here = [digest(made) for made in frames(2)]
        cv2.setNumThreads(2)
        assert here == [digest(made) for made in frames(2)]
    finally:
        cv2.setNumThreads(before)


def test_every_key_matters():
    base = {"site": "site-1", "patient": "p0001", "sequence": 0, "index": 0, "size": 96, "seed": 0}
    others = [{"site": "site-2"}, {"patient": "p0002"}, {"sequence": 1}, {"index": 1}, {"seed": 1}, {"size": 97}]
    seen = {digest(frame(**{**base, **other})) for other in [{}, *others]}
    assert len(seen) == 7


def test_boxes_enclose_their_masks_exactly():
    boxes = 0
    for made in frames(12):
        for box, mask in zip(made.boxes, made.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            boxes += 1
        assert (made.masks.sum(0) <= 1).all()  # a pixel shows one polyp
    assert boxes > 25


def test_masks_are_what_the_polyps_change(monkeypatch):
    """Paint the same scene with and without polyps: relief or colour changes inside the mask, and only there but for
    the soft rim (a pixel) and the parts behind screen and tools."""
    pairs, checked = [], 0
    real = rendering.polyp.paint

    def spy(kept, depth, albedo):
        before = albedo.copy(), depth.copy()
        real(kept, depth, albedo)
        flat = np.abs(depth - before[1]) > 1e-3
        # the crease darkens all channels alike; a tint does not
        ratio = albedo / before[0]
        pairs.append(flat | (np.abs(ratio - ratio[:1]).max(0) > 0.02))

    monkeypatch.setattr(rendering.polyp, "paint", spy)
    for site in SITES:
        look = style(site)
        cam = rendering.camera(look, 160)
        free = rendering.screen.free_area(look, cam)
        for k in range(8):
            made = rendering.render(look, f"p{k}", 0, 0, 160)
            if len(made.boxes) != 1 or rendering.clutter.instrument(look, cam, _scene(look, f"p{k}")):
                continue
            rows, columns = np.nonzero(pairs[-1] & free)
            drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert np.abs(drawn - made.boxes[0]).max() <= 1, (site, k, drawn, made.boxes)
            checked += 1
    assert checked > 8


def _scene(look, name):
    return rendering.rng("scene", look.seed, look.site, name, 0)


def test_polyps_lie_in_the_view_and_not_under_the_inset():
    for site in SITES:
        look = style(site)
        cam = rendering.camera(look, 128)
        area = rendering.screen.inset_area(look, cam)
        for made in frames(8, sites=(site,)):
            assert not (made.masks & ~cam.inside).any()
            if area:
                assert not made.masks[:, area[0], area[1]].any()


def test_frames_of_a_sequence_are_near_and_patients_are_not():
    def thumb(*key):
        return cv2.resize(frame("site-1", *key, 128).image, (24, 24), interpolation=cv2.INTER_AREA).astype(float)

    near = [np.abs(thumb(f"p{k}", 0, 0) - thumb(f"p{k}", 0, 1)).mean() for k in range(6)]
    far = [np.abs(thumb(f"p{k}", 0, 0) - thumb(f"p{k + 1}", 0, 0)).mean() for k in range(6)]
    assert np.median(near) < 0.6 * np.median(far)


def test_four_numbered_sites_share_no_view_and_no_tint():
    for seed in range(5):
        looks = [style(site, seed) for site in SITES]
        assert len({look.view for look in looks}) == 4
        assert len({look.polyp_tint for look in looks}) == 4
        assert max(look.negatives for look in looks) - min(look.negatives for look in looks) > 0.15


def test_sites_differ_more_than_patients_do():
    def colours(site):
        images = [frame(site, f"p{k}", 0, 0, 96).image.reshape(-1, 3) for k in range(10)]
        return np.array([pixels[pixels.max(1) > 40].mean(0) for pixels in images])

    found = [colours(site) for site in SITES]
    within = np.mean([c.std(0) for c in found], 0)
    between = np.std([c.mean(0) for c in found], 0)
    assert (between > within).any()


def test_a_name_without_number_is_a_site_too():
    assert frame("Oslo", "p0", 0, 0, 64).image.shape[1] == 64
    assert style("Oslo") != style("Lyon")


@pytest.mark.parametrize("size", [0, 63, 641])
def test_odd_sizes_are_refused(size):
    with pytest.raises(ConfigError, match="must be 64 to 640"):
        frame("site-1", "p0", 0, 0, size)
