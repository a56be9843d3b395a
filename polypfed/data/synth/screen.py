"""After the lens: motion blur, sensor noise, the dark surround, burned-in text and the coloured inset."""

from functools import lru_cache

import numpy as np

from polypfed.data.synth.camera import Camera
from polypfed.data.synth.look import Style
from polypfed.data.synth.seeds import Float, Mask, cut, cv, rng

Pixels = np.ndarray


@lru_cache(maxsize=16)
def noise(sigma: float, side: int) -> np.ndarray:
    """A tile of sensor noise (side, side, 3) int16: fine grain and coarser colour noise, drawn small and enlarged."""
    draw = rng("noise", side)
    fine = draw.standard_normal((side, side, 1), dtype=np.float32)
    coarse = cv().resize(draw.standard_normal((side // 3, side // 3, 3), dtype=np.float32), (side, side))
    made: np.ndarray = np.rint(np.float32(sigma) * (np.float32(0.7) * fine + np.float32(0.9) * coarse)).astype(np.int16)
    return made


def smear(picture: Pixels, drift: tuple[float, float], cam: Camera) -> Pixels:
    """Motion blur along the drift (view radii)."""
    x, y = drift[0] * cam.half, drift[1] * cam.half
    reach = int(min(4, max(1, round(float(np.hypot(x, y))))))
    side = 2 * reach + 1
    kernel = np.zeros((side, side), np.uint8)
    norm = float(np.hypot(x, y)) or 1.0
    end = round(8 * reach * x / norm), round(8 * reach * y / norm)
    centre = reach * 8
    cv().line(kernel, (centre - end[0], centre - end[1]), (centre + end[0], centre + end[1]), 255, 1, cv().LINE_AA, 3)
    blurred: Pixels = cv().filter2D(picture, -1, kernel.astype(np.float32) / max(float(kernel.sum()), 1.0))
    return blurred


def develop(look: Style, cam: Camera, draw: np.random.Generator, levels: Float, drift: tuple[float, float]) -> Pixels:
    """uint8 picture (h, w, 3) with the scope's edge enhancement, motion blur, noise and the dark surround."""
    cv2 = cv()
    picture: Pixels = cv2.merge(list(levels.astype(np.uint8)))
    soft = cv2.GaussianBlur(picture, (0, 0), 1.0 * cam.width / 256)
    picture = cv2.addWeighted(picture, 1 + look.sharpen, soft, -look.sharpen, 0)
    if draw.uniform() < look.blur:
        picture = smear(picture, drift, cam)
    grain = cut(noise(look.noise, 5 * cam.width // 4), draw, cam.width, cam.height)
    picture = cv2.add(picture, grain, dtype=cv2.CV_16S)
    shown: Pixels = cv2.convertScaleAbs(np.maximum(picture * cam.view + cam.dark, 0))
    return shown


def inset_area(look: Style, cam: Camera) -> tuple[slice, slice] | None:
    """Rows and columns the coloured inset covers."""
    if look.inset is None:
        return None
    width, height = round(0.26 * cam.width), round(0.24 * cam.width)
    return slice(cam.height - height, cam.height), slice(0, width)


def free_area(look: Style, cam: Camera) -> Mask:
    """Pixels of the view that the inset leaves free."""
    free = cam.inside.copy()
    if area := inset_area(look, cam):
        free[area] = False
    return free


def overlay(look: Style, cam: Camera, draw: np.random.Generator, name: str, picture: Pixels) -> None:
    """Inset and text, in place."""
    cv2 = cv()
    if (area := inset_area(look, cam)) and look.inset:
        block = picture[area]
        block[:] = np.round(np.array(look.inset) * 255).astype(np.uint8)
        height, width = block.shape[:2]
        turn = np.linspace(0, float(draw.uniform(3, 6)), 12)
        path = np.stack([0.5 + 0.28 * np.sin(turn), 0.9 - 0.065 * np.arange(12)], 1) * (width, height)
        patch = np.ascontiguousarray(block)
        cv2.polylines(patch, [np.round(path * 8).astype(np.int32)[:, None]], False, (25, 40, 40), 1, cv2.LINE_AA, 3)
        block[:] = patch
    for text, x, y in _texts(look, draw, name):
        scale = cam.width / 420
        place = int(x * cam.width), int(y * cam.height)
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_PLAIN, scale, (115, 115, 115), 1, cv2.LINE_AA)


def _texts(look: Style, draw: np.random.Generator, name: str) -> list[tuple[str, float, float]]:
    clock = f"{int(draw.integers(8, 18)):02d}:{int(draw.integers(60)):02d}:{int(draw.integers(60)):02d}"
    if look.text == "column":
        lines = ["Name:", name[:8], "Sex: Age:", "01/01/2000", clock, "Cm: E:A3"]
        return [(line, 0.01, 0.10 + 0.07 * k) for k, line in enumerate(lines)]
    if look.text == "corner":
        return [("01/01/2000", 0.01, 0.07), (clock, 0.01, 0.14)]
    if look.text == "line":
        return [(f"{clock} {name[:8]}", 0.62, 0.98)]
    return []
