"""Small files made on the spot. They are written with Pillow, not with the code under test."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Paint = Callable[..., Path]


@pytest.fixture
def paint() -> Paint:
    """paint(path, width, height, seed): an image of random blocks; the suffix gives the type."""

    def paint(path: Path, width: int = 64, height: int = 48, seed: int = 0, **options: object) -> Path:
        blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC).save(path, **options)
        return path

    return paint


@pytest.fixture
def paint_mask() -> Paint:
    """paint_mask(path, width, height, boxes): filled rectangles (xyxy, end exclusive) on black."""

    def paint_mask(path: Path, width: int = 64, height: int = 48, boxes: object = (), **options: object) -> Path:
        mask = np.zeros((height, width), np.uint8)
        for x1, y1, x2, y2 in boxes:
            mask[y1:y2, x1:x2] = 255
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path, **options)
        return path

    return paint_mask


@pytest.fixture
def make_yolo(paint: Paint) -> Callable[..., Path]:
    """make_yolo(folder, {stem: label text}): a YOLO folder of 64 x 48 JPEGs, each image another."""

    def make_yolo(folder: Path, labels: Mapping[str, str], suffix: str = ".jpg") -> Path:
        (folder / "labels").mkdir(parents=True)
        for seed, (stem, text) in enumerate(labels.items()):
            paint(folder / "images" / f"{stem}{suffix}", seed=seed)
            (folder / "labels" / f"{stem}.txt").write_text(text)
        return folder

    return make_yolo
