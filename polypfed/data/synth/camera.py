"""The lens: which direction every pixel looks in, and which pixels belong to the round or cornered view."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from polypfed.core.errors import ConfigError
from polypfed.data.synth.look import Style
from polypfed.data.synth.seeds import Float, Mask

SIZES = (64, 640)
NOTCH = 0.62


@dataclass(frozen=True, eq=False)
class Camera:
    """Grids of one site at one size. Slopes are undistorted: x/z and y/z of the ray through a pixel.

    x, y: (h + 2 pad, w + 2 pad) float32, padded so that outlines outside the picture can be measured.
    ray: (h, w), 1 + x^2 + y^2. pixels: (h, w), pixels per slope. view: in [0, 1], soft at the rim.
    """

    width: int
    height: int
    pad: int
    half: float
    middle: tuple[float, float]
    field: float
    barrel: float
    x: Float
    y: Float
    ray: Float
    pixels: Float
    view: Float  # (h, w, 3)
    inside: Mask
    shade: Float
    dark: Float  # (h, w, 3), what is seen outside the view

    def slope(self, u: float, v: float) -> tuple[float, float]:
        """Slopes of a point given in view radii from the middle of the view."""
        grow = self.field * (1 + self.barrel * (u * u + v * v))
        return u * grow, v * grow

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixel (column, row) of a slope: the inverse of `slope`, by Newton's method."""
        target = float(np.hypot(x, y)) / self.field
        radius = target
        for _ in range(8):
            radius -= (radius + self.barrel * radius**3 - target) / (1 + 3 * self.barrel * radius**2)
        share = radius / (target * self.field) if target else 0.0
        return self.middle[0] + x * share * self.half, self.middle[1] + y * share * self.half


def check_size(size: int) -> None:
    """Refuse widths for which the effects are not made."""
    if not SIZES[0] <= size <= SIZES[1]:
        raise ConfigError(f"{size} pixels, must be {SIZES[0]} to {SIZES[1]}", where="size")


@lru_cache(maxsize=32)
def camera(look: Style, size: int) -> Camera:
    """The cached camera of a site for images `size` pixels wide."""
    check_size(size)
    width, height, pad = size, 2 * round(size * look.aspect / 2), size // 2
    half = look.radius * width / 2
    middle = ((0.5 + look.shift) * width, height / 2)
    columns = (np.arange(-pad, width + pad, dtype=np.float32) + 0.5 - middle[0]) / half
    rows = (np.arange(-pad, height + pad, dtype=np.float32) + 0.5 - middle[1]) / half
    square = columns[None, :] ** 2 + rows[:, None] ** 2
    grow = look.field * (1 + look.barrel * square)
    x, y = (columns[None, :] * grow).astype(np.float32), (rows[:, None] * grow).astype(np.float32)
    core = slice(pad, pad + height), slice(pad, pad + width)
    view = _view(look, columns[core[1]], rows[core[0]], half)
    shade = (1 - look.vignette * np.clip(square[core], 0, 1.3) ** 1.5).clip(0.15, 1).astype(np.float32)
    return Camera(
        width, height, pad, half, middle, look.field, look.barrel, x, y,
        ray=(1 + x[core] ** 2 + y[core] ** 2).astype(np.float32),
        pixels=(half / (look.field * (1 + 2 * look.barrel * square[core]))).astype(np.float32),
        view=np.dstack([view] * 3), inside=view > 0.5, shade=shade,
        dark=np.dstack([(1 - view) * np.float32(255 * look.border)] * 3),
    )  # fmt: skip


def _view(look: Style, u: Float, v: Float, half: float) -> Float:
    """The shape of the field of view as a soft mask; `u`, `v` in view radii."""
    across, down = np.abs(u)[None, :] + 0 * v[:, None], np.abs(v)[:, None] + 0 * u[None, :]
    if look.view == "full":
        gap = 1.0 - np.maximum(across, down) * 0.97 / max(1.0, look.radius)
    elif look.view == "octagon":
        gap = np.minimum.reduce([0.97 - across, 0.97 - down, (1.33 - across - down) * 0.7071])
    else:
        gap = 0.99 - np.hypot(across, down)
    if look.view == "notched":
        gap = np.minimum(gap, np.maximum(u[None, :] + NOTCH, NOTCH - 0.05 - v[:, None]))
    soft: Float = np.clip(gap * half + 0.5, 0, 1).astype(np.float32)
    return soft
