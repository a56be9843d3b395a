"""Raw heads to boxes, in NumPy: only for the cells that are confident enough.

A YOLO head of the anchor-free kind gives, per cell, four distributions over 16 distances (in cells, to the left, top,
right and bottom edge) and one score per class (Li et al., 2020, "Generalized Focal Loss").
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed.detect.metrics import box_iou

Floats = NDArray[np.float32]
BINS = 16
_STEPS = np.arange(BINS, dtype=np.float32)
CANDIDATES = 256


@dataclass(frozen=True)
class Level:
    """One level of a detector's outputs.

    Attributes:
        boxes, scores: numbers of the interpreter's tensors, (1, h, w, 64) and (1, h, w, classes).
        stride: pixels of the square per cell. width: cells in a row.
        box_scale, score_scale: (scale, zero point) if int8, (1, 0) otherwise.
    """

    boxes: int
    scores: int
    stride: int
    width: int
    box_scale: tuple[float, int]
    score_scale: tuple[float, int]

    def candidates(self, scores: NDArray[Any], least: float) -> tuple[NDArray[np.intp], Floats]:
        """Cells whose best class has a confidence of at least `least`, and that confidence.

        Args:
            scores: (1, h, w, classes), as the interpreter gives them. They are compared as they are, so that a frame
                without a polyp costs one pass over integers.
        """
        flat = scores.reshape(-1) if scores.shape[-1] == 1 else scores.reshape(-1, scores.shape[-1]).max(axis=1)
        scale, zero = self.score_scale
        if flat.dtype == np.int8:
            limit = int(np.ceil(np.float64(np.float32(least)) / scale + zero - 1e-6))
            cells = np.flatnonzero(flat >= limit) if limit <= 127 else np.zeros(0, np.intp)
            return cells, (flat[cells].astype(np.float32) - np.float32(zero)) * np.float32(scale)
        cells = np.flatnonzero(flat >= np.float32(least))
        return cells, flat[cells].astype(np.float32)

    def decode(self, boxes: NDArray[Any], cells: NDArray[np.intp]) -> Floats:
        """(n, 4) float32 xyxy of `cells`, in pixels of the square. `boxes`: (1, h, w, 64)."""
        rows = boxes.reshape(-1, 4 * BINS)[cells].astype(np.float32)
        scale, zero = self.box_scale
        if boxes.dtype == np.int8:
            rows = (rows - np.float32(zero)) * np.float32(scale)
        rows = rows.reshape(-1, 4, BINS)
        weight = np.exp(rows - rows.max(axis=2, keepdims=True))
        distance = weight @ _STEPS / weight.sum(axis=2)
        centre = np.stack((cells % self.width, cells // self.width), axis=1).astype(np.float32) + np.float32(0.5)
        edges = np.concatenate((centre - distance[:, :2], centre + distance[:, 2:]), axis=1)
        return np.asarray(edges * np.float32(self.stride), np.float32)


def suppress(xyxy: Floats, confidence: Floats, iou: float, most: int = 300) -> NDArray[np.intp]:
    """Greedy non-maximum suppression over one matrix of overlaps.

    Args:
        xyxy: (n, 4). confidence: (n,).
        iou: of two boxes that overlap by more than this, the weaker goes.
        most: boxes kept.

    Returns:
        Which to keep, best first; equal confidences in the order given.

    >>> boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]], np.float32)
    >>> suppress(boxes, np.array([0.5, 0.9, 0.8], np.float32), 0.5).tolist()
    [1, 2]
    """
    order = np.argsort(-confidence, kind="stable")
    if len(order) < 2:
        return order
    above = box_iou(xyxy[order], xyxy[order]) > np.float32(iou)
    alive = np.ones(len(order), bool)
    kept: list[int] = []
    for i in range(len(order)):
        if alive[i]:
            kept.append(i)
            if len(kept) == most:
                break
            alive[i + 1 :] &= ~above[i, i + 1 :]
    return order[kept]
