"""Geometry and light against closed forms and a second way of computing them."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cv2")

from polypfed.data.synth import light, style
from polypfed.data.synth.camera import camera
from polypfed.data.synth.patient import ALONG, AROUND, TEXTURE, Lesion, Patient
from polypfed.data.synth.polyp import Patch
from polypfed.data.synth.pose import Pose
from polypfed.data.synth.seeds import number, rng
from polypfed.data.synth.tube import wall
from polypfed.data.synth.visible import box, settle

LOOK = replace(style("site-1"), view="circle", shift=0.0, radius=1.0)


def core(cam):
    rows, columns = slice(cam.pad, cam.pad + cam.height), slice(cam.pad, cam.pad + cam.width)
    return cam.x[rows, columns].astype(float), cam.y[rows, columns].astype(float)


def test_keys_are_numbers_known_in_advance():
    """Would change with the hash, the separator or the version: then GENERATOR_VERSION must rise, too."""
    assert number("a", 1) == 69312725318753689048503995224876778845
    assert number("a", 1) != number("a1") != number("a", "", 1)


def test_place_undoes_the_lens():
    cam = camera(LOOK, 128)
    x, y = core(cam)
    for row, column in ((0, 0), (3, 90), (50, 64), (70, 10)):
        found = cam.place(x[row, column], y[row, column])
        assert found == pytest.approx((column + 0.5, row + 0.5), abs=1e-3)


def test_barrel_lens_squeezes_the_rim():
    x, _ = core(camera(LOOK, 128))
    steps = np.diff(x[x.shape[0] // 2])
    assert steps[0] > 1.2 * steps[64]


def bare(radius=1.0):
    tile = np.zeros((TEXTURE, TEXTURE, 2), np.float32)
    return Patient(np.full((AROUND, ALONG), radius, np.float32), tile, (0, 0), (0.7, 0.3, 0.2), (0.6, 0.4, 0.3), ())


@pytest.mark.parametrize("vanish", [(0.0, 0.0), (0.4, -0.2), (2.5, 1.0)])
def test_a_straight_tube_has_the_depth_of_a_cylinder(vanish):
    cam = camera(LOOK, 128)
    at = Pose(vanish, 0.0, 0.3, (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), True)
    got = wall(cam, bare(), at).depth
    x, y = core(cam)
    slope = np.hypot(x - vanish[0], y - vanish[1])
    clear = (slope > 0.2) & (slope < 3.0)  # the far end is cut off, the near end is sampled coarsely
    assert np.abs(got - np.log(1 / slope))[clear].max() < 0.03


def test_a_near_ridge_hides_the_wall_behind_it():
    cam = camera(LOOK, 128)
    body = bare()
    ridge = int(1.0 / 12 * ALONG)
    body.wall[:, ridge - 1 : ridge + 2] = 0.5  # a ring of half the radius at depth 1: slopes above 0.5 see no further
    at = Pose((0.0, 0.0), 0.0, 0.0, (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), True)
    depth = np.exp(wall(cam, body, at).depth)
    x, y = core(cam)
    slope = np.hypot(x, y)
    assert depth[(slope > 0.55) & (slope < 0.9)].max() < 1.06
    assert np.median(depth[(slope > 0.40) & (slope < 0.46)]) == pytest.approx(1 / 0.43, rel=0.08)


def test_facing_is_the_cosine_of_the_cross_product():
    """The closed form against normals from three neighbouring points in space."""
    cam = camera(LOOK, 128)
    x, y = core(cam)
    depth = 0.3 * np.sin(2 * x + 1) * np.cos(1.5 * y)
    gx = 0.6 * np.cos(2 * x + 1) * np.cos(1.5 * y)
    gy = -0.45 * np.sin(2 * x + 1) * np.sin(1.5 * y)

    def point(dx, dy):
        u, v = x + dx, y + dy
        z = np.exp(0.3 * np.sin(2 * u + 1) * np.cos(1.5 * v))
        return np.stack([u * z, v * z, z], -1)

    step = 1e-5
    normal = np.cross(point(step, 0) - point(0, 0), point(0, step) - point(0, 0))
    ray = np.stack([x, y, np.ones_like(x)], -1)
    wanted = np.abs((normal * ray).sum(-1)) / np.linalg.norm(normal, axis=-1) / np.linalg.norm(ray, axis=-1)
    got = light.facing(cam, gx.astype(np.float32), gy.astype(np.float32))
    assert np.abs(got - wanted).max() < 1e-3
    found = light.slopes(cam, depth.astype(np.float32), np.hypot(x, y).astype(np.float32))
    inner = np.s_[6:-6, 6:-6]
    assert np.abs(found[0] - gx)[inner].mean() < 0.08  # eased, blurred: near the true slope all the same


def test_exposure_reaches_the_tone():
    cam = camera(LOOK, 128)
    planes = rng("exposure").uniform(0.01, 0.5, (3, cam.height, cam.width)).astype(np.float32)
    planes *= np.array([3, 1, 0.2], np.float32)[:, None, None]
    tone = (0.6, 0.4, 0.3)
    levels = light.expose(LOOK, cam, planes, tone)
    assert levels[:, cam.inside].mean(1) == pytest.approx(np.array(tone) * 255, abs=6)


LESION = Lesion("sessile", 0, 0, 0.2, 1, 0, 1, (1, 1, 1), 0.1, 0.0, ())


def square(top, left, side, depth, whole=None, front=None):
    shape = np.ones((side, side), bool)
    plane = np.full((side, side), depth, np.float32)
    front = shape if front is None else front
    rows, columns = slice(top, top + side), slice(left, left + side)
    return Patch(LESION, rows, columns, shape, plane, plane, plane, plane, plane, front, whole or side * side)


def test_of_two_overlapping_polyps_the_hidden_one_goes():
    cam = camera(LOOK, 128)
    free = np.ones((cam.height, cam.width), bool)
    far, near = square(20, 20, 20, 1.0), square(25, 20, 20, 0.0)  # a quarter of the far one is left
    kept, masks = settle(cam, [far, near], free)
    assert kept == [near]
    assert box(masks[0]) == (20, 25, 40, 45)


def test_of_two_overlapping_polyps_the_far_one_keeps_what_is_seen():
    cam = camera(LOOK, 128)
    free = np.ones((cam.height, cam.width), bool)
    far, near = square(20, 20, 20, 1.0), square(30, 20, 20, 0.0)
    kept, masks = settle(cam, [far, near], free)
    assert kept == [far, near]
    assert [box(mask) for mask in masks] == [(20, 20, 40, 30), (20, 30, 40, 50)]


@pytest.mark.parametrize(("seen", "stays"), [(6, False), (7, True)])
def test_a_third_must_be_visible(seen, stays):
    """20 rows, 20 x 20 pixels: 6 rows are 30 %, 7 rows are 35 %."""
    cam = camera(LOOK, 128)
    free = np.zeros((cam.height, cam.width), bool)
    free[20 : 20 + seen] = True
    assert (settle(cam, [square(20, 20, 20, 1.0)], free)[0] != []) is stays


def test_what_lies_outside_the_picture_counts_as_hidden():
    cam = camera(LOOK, 128)
    free = np.ones((cam.height, cam.width), bool)
    assert settle(cam, [square(0, 0, 20, 1.0, whole=1300)], free)[0] == []


def test_a_removed_polyp_uncovers_the_one_behind():
    cam = camera(LOOK, 128)
    free = np.ones((cam.height, cam.width), bool)
    front = np.zeros((20, 20), bool)
    front[:5] = True  # a quarter of the near one shows in front of its fold, and goes
    far, near = square(20, 20, 20, 1.0), square(20, 20, 20, 0.0, front=front)
    kept, masks = settle(cam, [far, near], free)
    assert kept == [far]
    assert masks[0].sum() == 400


def test_box_of_nothing():
    assert box(np.zeros((4, 4), bool)) == (0, 0, 0, 0)
