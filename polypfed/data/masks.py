"""Boxes from masks: connected components by runs and union-find."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polypfed.data.groups import UnionFind


@dataclass(frozen=True)
class MaskRules:
    """What counts as a polyp in a mask.

    Args:
        threshold: foreground is above this grey value; masks saved as JPEG have many.
        min_pixels, min_share: least area, pixels and share of the image; the larger of both holds.
        min_side: least width and height of the box, pixels.
    """

    threshold: int = 127
    min_pixels: int = 16
    min_share: float = 0.0002
    min_side: int = 3


def mask_boxes(mask: NDArray[np.uint8], rules: MaskRules | None = None) -> tuple[NDArray[np.float32], int]:
    """Boxes of a mask and the number of components that are too small to count.

    Args:
        mask: (h, w) uint8 grey.
        rules: thresholds; by default 127, 16 pixels or 0.02 %, 3 pixels a side.

    Returns:
        (n, 4) float32 xyxy in pixels, the end one past the last foreground pixel, by their first pixel in reading
        order; and the number of specks.
    """
    rules = rules or MaskRules()
    boxes, areas = components(mask > rules.threshold)
    sides = boxes[:, 2:] - boxes[:, :2]
    large = areas >= max(rules.min_pixels, rules.min_share * mask.size)
    kept = large & (sides >= rules.min_side).all(axis=1)
    return boxes[kept].astype(np.float32), int((~kept).sum())


def components(foreground: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """8-connected components of a (h, w) bool image: (n, 4) int64 xyxy boxes, end exclusive, and (n,) int64 areas."""
    rows, starts, ends = _runs(foreground)
    union = UnionFind(len(rows))
    for i, j in _touching(rows, starts, ends, foreground.shape[1]):
        union.join(i, j)
    _, label = np.unique([union.find(i) for i in range(len(rows))], return_inverse=True)
    count = int(label.max(initial=-1)) + 1
    boxes = np.empty((count, 4), np.int64)
    boxes[:, :2], boxes[:, 2:] = np.iinfo(np.int64).max, 0
    for column, values, join in (
        (0, starts, np.minimum), (1, rows, np.minimum), (2, ends, np.maximum), (3, rows + 1, np.maximum),
    ):  # fmt: skip
        join.at(boxes[:, column], label, values)
    return boxes, np.bincount(label, ends - starts, count).astype(np.int64)


def _runs(foreground: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Row, start and end (exclusive) of each horizontal run, in reading order."""
    padded = np.pad(foreground, ((0, 0), (1, 1)))
    rows, columns = np.nonzero(padded[:, 1:] != padded[:, :-1])  # starts and ends take turns
    return rows[::2], columns[::2], columns[1::2]


def _touching(
    rows: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64], width: int
) -> list[tuple[int, int]]:
    """Pairs of runs in neighbouring rows that touch, corners included."""
    pitch = width + 2  # so that a run never reaches into the next row
    lows = np.searchsorted(rows * pitch + ends, (rows - 1) * pitch + starts, side="left")
    highs = np.searchsorted(rows * pitch + starts, (rows - 1) * pitch + ends, side="right")
    pairs = zip(lows.tolist(), highs.tolist(), strict=True)
    return [(above, run) for run, (low, high) in enumerate(pairs) for above in range(low, high)]
