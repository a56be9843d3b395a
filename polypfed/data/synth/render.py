"""One synthetic frame, put together from site, patient, sequence and index."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polypfed.data.synth import clutter, light, polyp, screen, visible
from polypfed.data.synth.camera import Camera, camera
from polypfed.data.synth.look import Style, Triple, style
from polypfed.data.synth.patient import patient as anatomy
from polypfed.data.synth.pose import pose
from polypfed.data.synth.seeds import Float, Mask, rng
from polypfed.data.synth.tube import Wall, wall

DEEPER = (0.0, 0.10, 0.13)  # light from afar has met the wall more often and is redder
VESSEL = (0.28, 0.62, 0.58)  # share of red, green and blue that a vessel swallows


@dataclass(frozen=True, eq=False)
class Frame:
    """image: (h, w, 3) uint8 RGB. boxes: (n, 4) float32 xyxy pixels, ends exclusive. masks: (n, h, w) bool."""

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    masks: NDArray[np.bool_]


def frame(site: str, patient: str | int, sequence: int, index: int, size: int = 192, seed: int = 0) -> Frame:
    """One frame; depends on its arguments alone, so any frame can be made again by itself.

    Args:
        site: names the hospital and with it the look.
        patient: names the anatomy within the site.
        sequence, index: frames of one sequence follow a camera path and look alike.
        size: image width in pixels, 64 to 640; the height is the site's.
        seed: of the federation.

    Raises:
        ConfigError: `size` out of range.
        MissingExtraError: OpenCV is not installed.
    """
    look = style(site, seed)
    return render(look, str(patient), sequence, index, size)


def render(look: Style, name: str, sequence: int, index: int, size: int) -> Frame:
    """The frame of a site whose look is given."""
    cam, body = camera(look, size), anatomy(look, name)
    at = pose(look, cam, body, name, sequence, index)
    scene = rng("scene", look.seed, look.site, name, sequence)
    own = rng("frame", look.seed, look.site, name, sequence, index)
    tube, tool = wall(cam, body, at), clutter.instrument(look, cam, scene)
    free = screen.free_area(look, cam)
    if tool is not None:
        free &= ~tool[0]
    found = polyp.patches(cam, body, at, tube) if at.positive else []
    kept, masks = visible.settle(cam, found, free)
    albedo = _albedo(look, body.mucosa, tube)
    clutter.stain(look, cam, scene, albedo, tube.depth)
    polyp.paint(kept, tube.depth, albedo)
    levels = _lit(look, cam, tube, albedo, body.tone, own, tool, clutter.bubbles(look, cam, scene))
    picture = screen.develop(look, cam, own, levels, at.drift)
    screen.overlay(look, cam, own, name, picture)
    boxes = np.array([visible.box(mask) for mask in masks], np.float32).reshape(-1, 4)
    stacked = np.stack(masks) if masks else np.zeros((0, cam.height, cam.width), np.bool_)
    return Frame(picture, boxes, stacked)


def _lit(
    look: Style,
    cam: Camera,
    tube: Wall,
    albedo: Float,
    tone: Triple,
    draw: np.random.Generator,
    tool: tuple[Mask, Float] | None,
    foam: Float | None,
) -> Float:
    """Levels (3, h, w) in [0, 255] of the painted scene under the scope's light."""
    gx, gy = light.slopes(cam, tube.depth, tube.distance)
    lit = light.brightness(cam, tube.depth, light.facing(cam, gx, gy))
    shine = light.glints(look, cam, draw, gx, gy, lit)
    deep = np.clip(tube.depth + np.float32(0.5), 0, 3)
    for plane, share in zip(albedo, DEEPER, strict=True):
        plane *= lit * (1 - np.float32(share) * deep)
    levels = light.expose(look, cam, albedo, tone)
    if tool is not None:
        levels = np.where(tool[0], np.minimum(tool[1] * 215, 250), levels)
    if foam is not None:
        shine = np.maximum(shine, foam)
    levels += shine * (np.float32(250) - levels)
    return levels


def _albedo(look: Style, mucosa: Triple, tube: Wall) -> Float:
    """Colour of the wall as planes (3, h, w)."""
    base = np.maximum(1 + np.float32(look.mottle) * tube.mottle, 0.3)
    dark = np.float32(look.vessels) * tube.vessels
    planes = [np.float32(c) * base * (1 - np.float32(v) * dark) for c, v in zip(mucosa, VESSEL, strict=True)]
    made: Float = np.stack(planes)
    return made
