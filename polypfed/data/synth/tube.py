"""Depth of the tube wall at every pixel, with the true hiding of far wall by near folds."""

from dataclasses import dataclass

import numpy as np

from polypfed.data.synth.camera import Camera
from polypfed.data.synth.patient import ALONG, AROUND, LENGTH, TEXTURE, Patient
from polypfed.data.synth.pose import Pose
from polypfed.data.synth.seeds import Float, cv

FAR, STEPS = 9.0, 96


@dataclass(frozen=True, eq=False)
class Wall:
    """(h, w) float32 each: log of the depth in tube radii, slope distance and angle from the axis, two surface maps."""

    depth: Float
    distance: Float
    vessels: Float
    mottle: Float


def wall(cam: Camera, body: Patient, at: Pose) -> Wall:
    """Cast every pixel's ray onto the wall.

    Around the axis' vanishing point a ray of slope r in direction phi meets the wall where wall(phi, z) / z first
    falls to r. Its running minimum over z is monotone, so one table lookup per direction inverts it exactly.
    """
    cv2, pad = cv(), cam.pad
    core = slice(pad, pad + cam.height), slice(pad, pad + cam.width)
    x, y = cam.x[core] - np.float32(at.vanish[0]), cam.y[core] - np.float32(at.vanish[1])
    distance, angle = cv2.cartToPolar(x, y)
    back = float(np.arctan2(-at.vanish[1], -at.vanish[0]))
    side = cv2.subtract(angle, back)
    side -= np.float32(2 * np.pi) * np.round(side * np.float32(1 / (2 * np.pi)))
    low, high, _, _ = cv2.minMaxLoc(side)
    near, wide, _, _ = cv2.minMaxLoc(distance)
    rows, columns = max(128, int(1.2 * cam.width)), max(96, int(0.9 * cam.width))
    phis = np.linspace(low, high, rows, dtype=np.float32)
    table = _table(body, at, phis + np.float32(back), np.linspace(near, wide, columns))
    to_row = (side - np.float32(low)) * np.float32((rows - 1) / max(high - low, 1e-6))
    to_column = (distance - np.float32(near)) * np.float32((columns - 1) / max(wide - near, 1e-6))
    depth = cv2.remap(table, to_column, to_row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    surface = _surface(body, at, angle, depth)
    return Wall(depth, distance, surface[..., 0], surface[..., 1])


def _table(body: Patient, at: Pose, phis: Float, slopes: np.ndarray) -> Float:
    """Log depth by direction (rows) and slope (columns)."""
    cv2 = cv()
    first = max(0.05, 0.3 / float(slopes[-1]))
    zs = np.geomspace(first, FAR, STEPS, dtype=np.float32)
    row = ((phis - np.float32(at.roll)) * np.float32(AROUND / (2 * np.pi)))[:, None] % AROUND
    column = ((zs + np.float32(at.z)) * np.float32(ALONG / LENGTH))[None, :] % ALONG
    shape = (len(phis), STEPS)
    radius = cv2.remap(
        body.wall, np.broadcast_to(column, shape).copy(), np.broadcast_to(row, shape).copy(),
        cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP,
    )  # fmt: skip
    far = (zs / 4) ** 2
    lean_x, lean_y = at.off[0] + at.bend[0] * far, at.off[1] + at.bend[1] * far
    radius = radius + np.cos(phis)[:, None] * lean_x + np.sin(phis)[:, None] * lean_y
    seen = np.minimum.accumulate(radius / zs, axis=1)[:, ::-1]
    logs = np.log(zs[::-1].astype(np.float64))
    made = np.empty((len(phis), len(slopes)), np.float32)
    for k, row_seen in enumerate(np.ascontiguousarray(seen, np.float64)):
        made[k] = np.interp(slopes, row_seen, logs)
    return made


def _surface(body: Patient, at: Pose, angle: Float, depth: Float) -> Float:
    """Vessels and mottling of the wall points seen, (h, w, 2)."""
    u = (angle - np.float32(at.roll)) * np.float32(TEXTURE / np.pi)
    v = (cv().exp(depth) + np.float32(at.z)) * np.float32(TEXTURE / np.pi)
    u += np.float32(body.corner[0])
    v += np.float32(body.corner[1])
    u -= TEXTURE * np.floor(u * np.float32(1 / TEXTURE))
    v -= TEXTURE * np.floor(v * np.float32(1 / TEXTURE))
    made: Float = cv().remap(body.texture, u, v, cv().INTER_LINEAR, borderMode=cv().BORDER_WRAP)
    return made
