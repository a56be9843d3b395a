"""What is no polyp and may look like one: bubbles, stool, instruments, wounds, dye."""

import numpy as np

from polypfed.data.synth.camera import Camera
from polypfed.data.synth.look import Style
from polypfed.data.synth.seeds import Float, Mask, cv, smooth

STOOL = np.array((0.50, 0.30, 0.06), np.float32)
DYE = np.array((0.30, 0.95, 1.9), np.float32)  # times the mucosa's colour
PLASTIC = ((0.85, 0.86, 0.88), (0.30, 0.45, 0.75), (0.16, 0.16, 0.17), (0.75, 0.80, 0.30))


def stain(look: Style, cam: Camera, draw: np.random.Generator, albedo: Float, depth: Float) -> None:
    """Dye, stool and wounds on the wall, in place."""
    _, stool, _, wound, dye = (float(draw.uniform()) < share for share in look.clutter)
    if dye:
        _dye(cam, draw, albedo)
    if stool:
        _stool(cam, draw, albedo, depth)
    if wound:
        _wound(cam, draw, albedo)


def _blend(albedo: Float, colour: Float, share: Float) -> None:
    albedo += share * (colour[:, None, None] - albedo)


def _dye(cam: Camera, draw: np.random.Generator, albedo: Float) -> None:
    """A blue, bounded patch, through which vessels and relief show."""
    centre, size = draw.uniform(-0.6, 0.6, 2), float(draw.uniform(0.25, 0.55))
    y = (np.arange(cam.height, dtype=np.float32)[:, None] - cam.middle[1]) / cam.half - np.float32(centre[1])
    x = (np.arange(cam.width, dtype=np.float32)[None, :] - cam.middle[0]) / cam.half - np.float32(centre[0])
    edge = np.hypot(x, y) / np.float32(size) + np.float32(0.3) * smooth(draw, 8, cam.width, cam.height)
    share = np.clip((1.1 - edge) * 2, 0, np.float32(draw.uniform(0.6, 1)))
    albedo *= 1 + share * (DYE[:, None, None] - 1)


def _stool(cam: Camera, draw: np.random.Generator, albedo: Float, depth: Float) -> None:
    """Yellow to brown lumps and films, more of them low in the picture where fluid gathers."""
    field = smooth(draw, int(draw.integers(6, 13)), cam.width, cam.height)
    field += 0.35 * smooth(draw, 28, cam.width, cam.height)
    low = np.linspace(-0.7, 0.5, cam.height, dtype=np.float32)[:, None]
    share = np.clip((field + low - float(draw.uniform(0.7, 1.5))) * 3, 0, 1)
    colour = STOOL * np.exp(draw.normal(0, 0.25, 3)).astype(np.float32)
    _blend(albedo, colour, share * np.float32(draw.uniform(0.6, 0.95)))
    depth -= share * np.float32(0.05)


def _wound(cam: Camera, draw: np.random.Generator, albedo: Float) -> None:
    """A flat, ragged red patch, at times with a whitish middle: colour without a raised body."""
    centre, size = draw.uniform(-0.7, 0.7, 2), float(draw.uniform(0.08, 0.22))
    column, row = cam.place(*cam.slope(float(centre[0]), float(centre[1])))
    reach = int(1.7 * size * cam.half)
    top, left = max(0, int(row) - reach), max(0, int(column) - reach)
    area = albedo[:, top : max(0, int(row) + reach), left : max(0, int(column) + reach)]
    height, width = area.shape[1:]
    if height < 4 or width < 4:
        return
    y = (np.arange(top, top + height, dtype=np.float32)[:, None] - row) / (size * cam.half)
    x = (np.arange(left, left + width, dtype=np.float32)[None, :] - column) / (size * cam.half)
    ragged = (np.hypot(x * draw.uniform(0.7, 1.3), y) + 0.22 * smooth(draw, 9, width, height)).astype(np.float32)
    _blend(area, np.array((0.55, 0.07, 0.06), np.float32), np.clip((1 - ragged) * 3, 0, 0.75))
    if draw.uniform() < 0.5:
        _blend(area, np.array((0.75, 0.62, 0.45), np.float32), np.clip((0.5 - ragged) * 4, 0, 0.7))


def instrument(look: Style, cam: Camera, draw: np.random.Generator) -> tuple[Mask, Float] | None:
    """A catheter or forceps from the rim inwards: its mask and its colours (3, h, w), or None."""
    if float(draw.uniform()) >= look.clutter[2]:
        return None
    heading = float(draw.uniform(0.15, 0.85) * np.pi) if draw.uniform() < 0.8 else float(draw.uniform(0, 6.28))
    tip, thick = draw.uniform(-0.35, 0.35, 2), float(draw.uniform(0.05, 0.11))
    y = (np.arange(cam.height, dtype=np.float32)[:, None] - cam.middle[1]) / cam.half - np.float32(tip[1])
    x = (np.arange(cam.width, dtype=np.float32)[None, :] - cam.middle[0]) / cam.half - np.float32(tip[0])
    along = x * np.float32(np.cos(heading)) + y * np.float32(np.sin(heading))
    across = (y * np.float32(np.cos(heading)) - x * np.float32(np.sin(heading))) / (thick * (1 + 0.35 * along))
    mask = (along > 0) & (np.abs(across) < 1)
    shade = np.sqrt(np.clip(1 - across * across, 0.05, 1)) * (0.35 + 0.65 * np.clip(along + 0.5, 0, 1))
    shade += 0.5 * np.exp(-(((across + 0.3) / 0.15) ** 2))
    colour = np.array(PLASTIC[int(draw.integers(len(PLASTIC)))], np.float32)
    return mask, (colour[:, None, None] * shade).astype(np.float32)


def bubbles(look: Style, cam: Camera, draw: np.random.Generator) -> Float | None:
    """Foam: bright rings and points in clusters, (h, w) in [0, 1], or None."""
    if float(draw.uniform()) >= look.clutter[0]:
        return None
    cv2, layer = cv(), np.zeros((cam.height, cam.width), np.uint8)
    for _ in range(int(draw.integers(1, 4))):
        middle, spread = draw.uniform(0.1, 0.9, 2) * (cam.width, cam.height), draw.uniform(0.03, 0.13)
        for _ in range(int(draw.integers(4, 22))):
            x, y = middle + draw.normal(0, spread * cam.width, 2)
            radius = float(cam.width * np.exp(draw.normal(np.log(0.012), 0.5)))
            cv2.circle(layer, (int(x * 8), int(y * 8)), int(radius * 8), 90, 1, cv2.LINE_AA, 3)
            spot = int((x - 0.4 * radius) * 8), int((y - 0.4 * radius) * 8)
            cv2.circle(layer, spot, max(3, int(radius * 2)), 255, -1, cv2.LINE_AA, 3)
    made: Float = layer.astype(np.float32) * np.float32(1 / 255)
    return made
