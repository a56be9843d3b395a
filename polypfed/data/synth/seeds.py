"""Random numbers by name: every draw is keyed, so a frame does not depend on the frames before it."""

import hashlib
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed.core.extras import require

GENERATOR_VERSION = 1
"""Raised whenever the same keys give other pixels or other boxes."""

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]


def number(*keys: object) -> int:
    """A 128-bit number from the keys, the same on every machine and in every process."""
    text = "\x1f".join(str(key) for key in (GENERATOR_VERSION, *keys))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def rng(*keys: object) -> np.random.Generator:
    """A generator of its own for the keys."""
    return np.random.Generator(np.random.PCG64(number(*keys)))


@cache
def cv() -> Any:
    """OpenCV, or the error that names the extra which brings it."""
    return require("cv2", extra="yolo")


def smooth(draw: np.random.Generator, cells: int, width: int, height: int) -> Float:
    """Noise drawn on a coarse lattice and enlarged to (height, width), about unit variance."""
    rows = max(2, round(cells * height / width))
    coarse = draw.standard_normal((rows, cells), dtype=np.float32)
    grown: Float = cv().resize(coarse, (width, height), interpolation=cv().INTER_CUBIC)
    return grown


@lru_cache(maxsize=2)
def grain(side: int = 512) -> Float:
    """A fixed tile of white noise (side, side); frames cut their noise out of it at random places."""
    return rng("grain", side).standard_normal((side, side), dtype=np.float32)


@lru_cache(maxsize=4)
def blotches(side: int = 256, blur: float = 2.0) -> Float:
    """A fixed periodic tile of blurred noise (side, side), unit variance."""
    tile = rng("blotches", side).standard_normal((side, side), dtype=np.float32)
    tile = cv().GaussianBlur(np.tile(tile, (2, 2)), (0, 0), blur)
    cut = tile[side // 2 : side // 2 + side, side // 2 : side // 2 + side]
    scaled: Float = ((cut - cut.mean()) / cut.std()).astype(np.float32)
    return scaled


def cut(tile: Float, draw: np.random.Generator, width: int, height: int) -> Float:
    """A random (height, width) piece of a tile, mirrored at random; views, no copies."""
    rows, columns = tile.shape[:2]
    top, left = int(draw.integers(0, rows - height + 1)), int(draw.integers(0, columns - width + 1))
    piece = tile[top : top + height, left : left + width]
    return piece[:: 1 - 2 * int(draw.integers(2)), :: 1 - 2 * int(draw.integers(2))]
