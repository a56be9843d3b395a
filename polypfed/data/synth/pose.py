"""Where the camera is: one path per sequence, frames close to each other along it."""

from dataclasses import dataclass

import numpy as np

from polypfed.data.synth.camera import Camera
from polypfed.data.synth.look import Style
from polypfed.data.synth.patient import Patient
from polypfed.data.synth.seeds import rng


@dataclass(frozen=True)
class Pose:
    """vanish: slopes of the tube's axis. z: camera's place on it. off, bend: sideways shift at hand and far away."""

    vanish: tuple[float, float]
    z: float
    roll: float
    off: tuple[float, float]
    bend: tuple[float, float]
    drift: tuple[float, float]  # motion of the view in view radii per frame, for motion blur
    positive: bool


def pose(look: Style, cam: Camera, body: Patient, name: str, sequence: int, index: int) -> Pose:
    """The pose of frame `index`: a sequence aims at one polyp, or at wall without any."""
    draw = rng("sequence", look.seed, look.site, name, sequence)
    positive = bool(draw.uniform() >= look.negatives)
    aim = body.lesions[int(draw.integers(len(body.lesions)))]
    size = float(np.clip(np.exp(draw.normal(np.log(look.polyp_size), look.polyp_spread)), 0.10, 0.8))
    u, v = _aim(look, cam, draw, size)
    sway, phase = draw.uniform(0.06, 0.14, 2), draw.uniform(0, 6.28, 4)
    time = 0.55 * index
    u += float(sway[0] * np.sin(time + phase[0]))
    v += float(sway[1] * np.sin(0.8 * time + phase[1]))
    size *= float(1 + 0.22 * np.sin(0.6 * time + phase[2]))
    x, y = cam.slope(u, v)
    away = float(np.arctan2(-y, -x) + draw.normal(0, 0.8))
    radius = body.radius(aim.phi, aim.z)
    near = size * cam.field / aim.size * 1.05  # inverse distance at which the polyp has the wanted size
    long = float(np.clip(radius * near, 0.35, 3.0))
    vanish = (x + long * float(np.cos(away)), y + long * float(np.sin(away)))
    roll = away + np.pi - aim.phi + 0.05 * np.sin(time + phase[3])
    shift = 0.0 if positive else 2.5 + float(draw.uniform(0, 7))
    bend = tuple(float(b) for b in draw.normal(0, 0.12, 2))
    speed = rng("motion", look.seed, look.site, name, sequence, index).normal(0, 0.02, 2)
    return Pose(
        vanish, aim.z - radius / long + shift, float(roll), (0.0, 0.0), bend,  # type: ignore[arg-type]
        (float(speed[0]), float(speed[1])), positive,
    )  # fmt: skip


def _aim(look: Style, cam: Camera, draw: np.random.Generator, size: float) -> tuple[float, float]:
    """A point of the view, nearer the middle for a large polyp, in view radii from its middle."""
    reach = look.reach * (1.1 - 0.6 * size) * float(np.sqrt(draw.uniform(0.02, 1)))
    angle = float(draw.uniform(0, 2 * np.pi))
    return reach * float(np.cos(angle)), reach * float(np.sin(angle)) * min(1.0, 1.1 * cam.height / cam.width)
