"""Tiny sites: bright discs on a noisy ground, in the YOLO layout."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_site(folder: Path, images: int, seed: int = 0, size: tuple[int, int] = (64, 56), negatives: int = 1) -> Path:
    """`images` frames of `size` (width, height), the first `negatives` of them without a disc."""
    rng = np.random.default_rng(seed)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    for number in range(images):
        pixels = rng.normal((130, 90, 90), 8, (height, width, 3))
        line = ""
        if number >= negatives:
            radius = rng.integers(8, 14)
            cx, cy = (int(rng.integers(radius, side - radius)) for side in size)
            pixels[(rows - cy) ** 2 + (columns - cx) ** 2 < radius**2] += [60, 50, 40]
            box = [cx / width, cy / height, 2 * radius / width, 2 * radius / height]
            line = "0 " + " ".join(f"{v:.6f}" for v in box) + "\n"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"f{number:02d}.png")
        (folder / "labels" / f"f{number:02d}.txt").write_text(line)
    return folder
