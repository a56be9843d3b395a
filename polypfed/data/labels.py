"""YOLO label files of one class: `0 cx cy w h` per line, shares of the image; an empty file is a negative."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import DataError
from polypfed.data.files import read_file

_UNIT = 1_000_000  # six digits
_SLACK = 1e-4  # other tools round edges outwards; beyond this it is an error and not a rounding


def read_labels(path: Path, size: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes of a label file: (n, 4) float32, xyxy, pixels of an image of `size` (width, height).

    Raises:
        DataError: names the line; wrong column count, not a number, class other than 0, empty box, box outside the
            image, or a line that occurs twice.
    """
    try:
        text = read_file(path, cap=2**20).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError("not a text file", where=path, remedy="Replace it by a label file in YOLO form") from None
    boxes: dict[tuple[float, ...], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        box = _box(line.split(), where)
        if box in boxes:
            raise DataError(f"the same box as line {boxes[box]}", where=where, remedy="Delete one of the two lines")
        boxes[box] = number
    scale = np.array([*size, *size], np.float64)
    return (np.array(list(boxes), np.float64).reshape(-1, 4) * scale).astype(np.float32)


def _box(columns: list[str], where: str) -> tuple[float, ...]:
    """xyxy as shares of the image, in [0, 1]."""
    if len(columns) != 5:
        raise DataError(f"{len(columns)} columns, not the 5 of `0 cx cy w h`", where=where)
    try:
        kind, cx, cy, w, h = (float(column) for column in columns)
    except ValueError:
        raise DataError(f"not a number: {' '.join(columns)[:80]!r}", where=where) from None
    if not all(map(math.isfinite, (kind, cx, cy, w, h))):
        raise DataError("NaN or infinity", where=where, remedy="Fix or delete that line")
    if kind != 0:
        raise DataError(f"class {columns[0]}, but there is only class 0 (polyp)", where=where)
    if w <= 0 or h <= 0:
        raise DataError(f"the box is empty: w={w:g}, h={h:g}", where=where, remedy="Fix or delete that line")
    edges = {"x1": cx - w / 2, "y1": cy - h / 2, "x2": cx + w / 2, "y2": cy + h / 2}
    for name, value in edges.items():
        if not -_SLACK <= value <= 1 + _SLACK:
            problem = f"the box lies outside the image: {name}={value:.6g}"
            raise DataError(problem, where=where, remedy="Fix or delete that line")
    return tuple(min(max(value, 0.0), 1.0) for value in edges.values())


def label_text(boxes: NDArray[np.float32], size: tuple[int, int], where: object = "") -> str:
    """Label file for pixel boxes (n, 4) xyxy on an image of `size` (width, height).

    Six digits, rounded inwards so that all four edges end inside [0, 1]; reading and writing again changes nothing.

    Raises:
        DataError: a box vanishes by the rounding, or two become equal.

    >>> label_text(np.array([[0, 10, 50, 100]], np.float32), (100, 100))
    '0 0.250000 0.550000 0.500000 0.900000\\n'
    """
    units = np.asarray(boxes, np.float64).reshape(-1, 4) / np.array([*size, *size]) * _UNIT
    low = np.clip(np.ceil(units[:, :2] - 0.1), 0, _UNIT).astype(np.int64)  # 0.1: float32 noise is no reason to shrink
    high = np.clip(np.floor(units[:, 2:] + 0.1), 0, _UNIT).astype(np.int64)
    high -= (low + high) % 2  # so that the centre has six digits, too
    if (high <= low).any():
        raise DataError("a box is too small to be written", where=where)
    rows = np.concatenate([(low + high) // 2, high - low], axis=1).tolist()
    lines = ["0 " + " ".join(f"{v // _UNIT}.{v % _UNIT:06d}" for v in row) + "\n" for row in rows]
    if len(set(lines)) != len(lines):
        raise DataError("two boxes are the same", where=where, remedy="Remove one")
    return "".join(lines)
