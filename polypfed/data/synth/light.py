"""Light at the tip of the scope: shading from depth, wet glints, exposure and tone."""

from functools import lru_cache

import numpy as np

from polypfed.data.synth.camera import Camera
from polypfed.data.synth.look import Style
from polypfed.data.synth.seeds import Float, blotches, cut, cv, smooth

FALL, AMBIENT, STEEP = 0.72, 0.15, 3.0
TOP, ENTRIES = 6.0, 2048


def slopes(cam: Camera, depth: Float, distance: Float) -> tuple[Float, Float]:
    """Gradient of the log depth per slope, each (h, w).

    Of the differences to either side the smaller counts, and what is steeper than any surface is eased off, so that a
    step from one fold to the next draws no dark line. A smooth tube has slope 1 / distance from its vanishing point.
    """
    cv2 = cv()
    wide = cv2.copyMakeBorder(depth, 2, 2, 2, 2, cv2.BORDER_REPLICATE)
    along, down = 0.5 * (wide[2:-2, 2:] - wide[2:-2, :-2]), 0.5 * (wide[2:, 2:-2] - wide[:-2, 2:-2])
    both = []
    for before, after in ((along[:, :-2], along[:, 2:]), (down[:-2], down[2:])):
        least = np.where(np.abs(before) < np.abs(after), before, after)
        both.append(least * cam.pixels)
    steep = np.float32(STEEP) + np.float32(2.5) / np.maximum(distance, np.float32(0.08))
    ease = 1 / (1 + (both[0] * both[0] + both[1] * both[1]) / (steep * steep))
    gx, gy = (cv2.GaussianBlur(g * ease, (0, 0), 0.8) for g in both)
    return gx, gy


def facing(cam: Camera, gx: Float, gy: Float) -> Float:
    """Cosine between the surface's normal and the ray, which is also the light's direction."""
    core = slice(cam.pad, cam.pad + cam.height), slice(cam.pad, cam.pad + cam.width)
    front = 1 + cam.x[core] * gx + cam.y[core] * gy
    made: Float = 1 / np.sqrt((gx * gx + gy * gy + front * front) * cam.ray)
    return made


def brightness(cam: Camera, depth: Float, cosine: Float) -> Float:
    """Light that arrives back: falls off with distance and with the angle, some from all sides."""
    reach = cv().exp(np.float32(-2 * FALL) * depth) * np.power(cam.ray, np.float32(-FALL))
    made: Float = (cosine + np.float32(AMBIENT)) * reach * cam.shade
    return made


def glints(look: Style, cam: Camera, draw: np.random.Generator, gx: Float, gy: Float, lit: Float) -> Float:
    """Wet highlights in [0, 1]: the rippled surface facing the light, in clusters where it is wet."""
    tile = blotches(256, 2.0)
    cells = max(24, look.glint_cells * 3)
    size = cam.width, cam.height
    rows = round(cells * cam.height / cam.width)
    ripple = [cv().resize(cut(tile, draw, cells, rows), size, interpolation=cv().INTER_CUBIC) for _ in "xyz"]
    cosine = facing(cam, gx + np.float32(0.4) * ripple[0], gy + np.float32(0.4) * ripple[1])
    wet = smooth(draw, int(draw.integers(4, 9)), *size)
    score = cosine + np.float32(0.09) * (ripple[2] + wet) + np.float32(0.10) * cv().log(lit + np.float32(1e-4))
    share = float(np.clip(look.glint * np.exp(draw.normal(0, 0.9)), 0.02, 6)) / 100
    sample = score[::3, ::3][cam.inside[::3, ::3]]
    level = float(np.quantile(sample, 1 - share))
    made: Float = np.clip((score - np.float32(level)) * 22 + 0.5, 0, 1)
    return made


@lru_cache(maxsize=32)
def curve(contrast: float) -> Float:
    """The camera's response to linear light in [0, TOP): a soft shoulder, then gamma; values in [0, 255]."""
    light = np.arange(ENTRIES, dtype=np.float32) * (TOP / ENTRIES)
    made: Float = (255 * (1 - np.exp(-1.15 * light)) ** (contrast / 1.9)).astype(np.float32)
    return made


def expose(look: Style, cam: Camera, colour: Float, tone: tuple[float, float, float]) -> Float:
    """Levels in [0, 255] from linear planes (3, h, w).

    Automatic exposure and white balance: a gain per channel brings the view's mean to the patient's tone.
    """
    table = curve(look.contrast)
    sample = colour[:, ::6, ::6][:, cam.inside[::6, ::6]]
    gain = np.full((3, 1), 0.6 * ENTRIES / TOP / max(float(sample.mean()), 1e-6), np.float32)
    wanted = np.array(tone, np.float32)[:, None] * 255
    for _ in range(4):
        levels = table.take(np.minimum(sample * gain, ENTRIES - 1).astype(np.int32))
        gain *= (wanted / levels.mean(1, keepdims=True)) ** np.float32(1.5 / look.contrast)
    made: Float = table.take(np.minimum(colour * gain[..., None], ENTRIES - 1).astype(np.uint16))
    return made
