"""Polyps: a raised, irregular body on the wall with its own tint, at times behind a fold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polypfed.data.synth.camera import Camera
from polypfed.data.synth.patient import LENGTH, Lesion, Patient
from polypfed.data.synth.pose import Pose
from polypfed.data.synth.seeds import Float, Mask, blotches, cv
from polypfed.data.synth.tube import Wall

_CAP = 0.93
_LOW = (1 - _CAP * _CAP) ** 0.5  # the dome is a ball cut off at this height, so its foot is steep but finite
TOLERANCE = 0.22
"""Wall nearer than a polyp's foot by this much (log depth) is a fold in front of it, not a bulge under it."""


@dataclass(frozen=True, eq=False)
class Patch:
    """A polyp on the picture. Slices address the picture; arrays cover the slices."""

    lesion: Lesion
    rows: slice
    columns: slice
    shape: Mask
    depth: Float  # log depth of its surface
    height: Float  # 0 at the rim, 1 at the top
    radius: Float  # 1 at the rim
    p: Float
    q: Float
    front: Mask  # not hidden by folds
    whole: int  # pixels of the full outline, also outside the picture


def patches(cam: Camera, body: Patient, at: Pose, wall: Wall) -> list[Patch]:
    """The patient's polyps that reach into the picture, far ones first."""
    found: list[tuple[float, Patch]] = []
    for lesion in body.lesions:
        far = (lesion.z - at.z + LENGTH / 2) % LENGTH - LENGTH / 2
        if 0.15 < far < 3.5 and (made := _patch(cam, body, at, wall, lesion, far)):
            found.append((far, made))
    return [made for _, made in sorted(found, key=lambda pair: -pair[0])]


def _patch(cam: Camera, body: Patient, at: Pose, wall: Wall, lesion: Lesion, far: float) -> Patch | None:
    angle, slope = lesion.phi + at.roll, body.radius(lesion.phi, lesion.z) / far
    size = lesion.size / far
    inward = slope - 0.35 * size * lesion.height
    centre = at.vanish[0] + inward * np.cos(angle), at.vanish[1] + inward * np.sin(angle)
    area = _area(cam, centre, size * (2.1 if lesion.kind == "stalked" else 1.5))
    if area is None:
        return None
    rows, columns = area
    x, y = cam.x[rows, columns] - np.float32(centre[0]), cam.y[rows, columns] - np.float32(centre[1])
    p, q, radius = _outline(lesion, x, y, float(angle), size, slope / cam.field)
    whole = int(np.count_nonzero(radius < 1))
    inner, picture = _crop(cam, rows, columns)
    if not whole or inner is None:
        return None
    p, q, radius = p[inner], q[inner], radius[inner]
    height = _height(lesion, p, q, radius)
    seen, distance = wall.depth[picture], wall.distance[picture]
    foot = np.log(np.float32(far)) + np.log(np.clip(np.float32(slope) / np.maximum(distance, 1e-3), 0.4, 2.5))
    shape = radius < 1
    bulge = np.clip(seen - foot, -TOLERANCE, TOLERANCE)
    level = bulge[shape].mean() if shape.any() else np.float32(0)
    base = foot + level + np.minimum(radius, 1) ** 4 * (bulge - level)
    depth = base - np.log1p(np.float32(lesion.height * size) * height)
    front = shape & ((seen > depth) | (seen > foot - TOLERANCE))
    return Patch(lesion, picture[0], picture[1], shape, depth.astype(np.float32), height, radius, p, q, front, whole)


def _area(cam: Camera, centre: tuple[float, float], reach: float) -> tuple[slice, slice] | None:
    """The padded grid's rows and columns that hold a disc of slopes."""
    corners = [cam.place(centre[0] + a * reach, centre[1] + b * reach) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    columns = [c[0] + cam.pad for c in corners]
    rows = [c[1] + cam.pad for c in corners]
    top, bottom = max(0, int(min(rows))), min(cam.height + 2 * cam.pad, int(max(rows)) + 2)
    left, right = max(0, int(min(columns))), min(cam.width + 2 * cam.pad, int(max(columns)) + 2)
    return (slice(top, bottom), slice(left, right)) if bottom > top + 2 and right > left + 2 else None


def _crop(cam: Camera, rows: slice, columns: slice) -> tuple[tuple[slice, slice] | None, tuple[slice, slice]]:
    """The part of a padded area inside the picture: as slices of the area and of the picture."""
    pad = cam.pad
    top, bottom = max(rows.start, pad), min(rows.stop, pad + cam.height)
    left, right = max(columns.start, pad), min(columns.stop, pad + cam.width)
    picture = slice(top - pad, bottom - pad), slice(left - pad, right - pad)
    if bottom <= top or right <= left:
        return None, picture
    return (slice(top - rows.start, bottom - rows.start), slice(left - columns.start, right - columns.start)), picture


def _outline(
    lesion: Lesion, x: Float, y: Float, angle: float, size: float, oblique: float
) -> tuple[Float, Float, Float]:
    """Coordinates on the polyp (p along the wall's ring, q away from the lumen) and the radius, 1 at the rim."""
    sine, cosine = np.sin(angle), np.cos(angle)
    flatness = {"flat": 1.0, "sessile": 0.45, "stalked": 0.2}[lesion.kind]
    squeeze = 1 - flatness * (1 - float(np.clip(oblique, 0.5, 1)))
    p = (cosine * y - sine * x) * np.float32(1 / size)
    q = (cosine * x + sine * y) * np.float32(1 / (size * squeeze))
    c, s = np.float32(np.cos(lesion.turn)), np.float32(np.sin(lesion.turn))
    stretch = np.float32(lesion.stretch**0.5)
    a, b = (c * p + s * q) * stretch, (c * q - s * p) / stretch
    phase = lesion.phases
    rough = np.float32(0.06 if lesion.kind == "flat" else 0.025)
    a = a + np.float32(0.15) * np.sin(1.5 * b + phase[0]) + rough * np.sin(4.3 * b + phase[1])
    b = b + np.float32(0.15) * np.sin(1.3 * a + phase[2]) + rough * np.sin(3.9 * a + phase[3])
    radius = np.sqrt(a * a + b * b)
    if lesion.kind == "stalked":
        stem = np.hypot(p / (0.34 + 0.12 * np.clip(q - 0.8, 0, 1)), np.maximum(0.4 - q, q - 1.3).clip(0) / 0.4)
        radius = -0.12 * np.log(np.exp(-radius / 0.12) + np.exp(-stem / 0.12) + 1e-30)
    return p.astype(np.float32), q.astype(np.float32), radius.astype(np.float32)


def _height(lesion: Lesion, p: Float, q: Float, radius: Float) -> Float:
    """A dome with a finite slope at its foot; a plateau for flat polyps; lobes on the surface."""
    rise = np.clip(1 - radius * radius, 0, 1)
    if lesion.kind == "flat":
        dome = rise * rise * (3 - 2 * rise)
    else:
        dome = (np.sqrt(1 - _CAP * _CAP * (1 - rise)) - _LOW) / (1 - _LOW)
    if lesion.kind == "stalked":
        dome = dome * np.clip(1.5 - 0.75 * q, 0.35, 1)
    phase = lesion.phases[4:]
    lobes = np.sin(3.1 * p + phase[0]) * np.sin(2.7 * q + phase[1]) + 0.5 * np.sin(6 * p + 4 * q + phase[2])
    made: Float = (dome * (1 + np.float32(0.02 + lesion.lobes) * lobes)).astype(np.float32)
    return made


def paint(found: Sequence[Patch], depth: Float, albedo: Float) -> None:
    """Put the polyps into the depth map and the colour map, in place, far ones first."""
    cv2 = cv()
    for patch in found:
        where, lesion = (patch.rows, patch.columns), patch.lesion
        near = patch.front & (patch.depth < depth[where] + TOLERANCE)
        crease = 1 - np.float32(0.22) * np.exp(-(((patch.radius - 1.0) / 0.10) ** 2)) * (patch.radius < 1.25)
        hidden = patch.shape & ~patch.front
        crease[hidden] = 1
        rim = np.clip((1.02 - patch.radius) * 9, 0, 1) * near
        if lesion.kind == "stalked":
            rim = rim * np.clip(1.6 - 0.9 * patch.q, 0.15, 1)
        tile = blotches(256, 1.6)
        speckle = cv2.remap(
            tile, patch.p * 36 + 128, patch.q * 36 + 128, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )  # fmt: skip
        texture = 1 + np.float32(lesion.grain) * np.clip(speckle, -2, 2)
        for plane, tint in zip(albedo, lesion.tint, strict=True):
            plane[where] *= (1 + rim * (np.float32(tint) * texture - 1)) * crease
        depth[where] = np.where(near, patch.depth, depth[where])
