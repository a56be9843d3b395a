"""Average precision of a one-class detector, in numpy.

Matching is greedy by confidence, as in COCO: each detection takes the best box that is still free, at each of the ten
IoU thresholds 0.50 to 0.95 on its own. AP is the area under the precision envelope read at 101 recalls. Precision,
recall and F1 are those at the confidence where the smoothed F1 curve is highest. The numbers equal those of
ultralytics 8.4 (`utils/metrics.py`: `ap_per_class`, `compute_ap`; `engine/validator.py`: `match_predictions`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polypfed.core.errors import DataError
from polypfed.detect.detections import Detections

Floats = NDArray[np.float64]
THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
_RECALLS: Floats = np.linspace(0, 1, 101)
_CONFIDENCES: Floats = np.linspace(0, 1, 1000)


@dataclass(frozen=True)
class DetectionMetrics:
    """Scores in [0, 1]. Without any true box all of them are 0, whatever was detected."""

    map50: float = 0.0
    map50_95: float = 0.0
    precision: float = 0.0
    recall: float = 0.0
    f1: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """The five numbers by name, as an `Evaluation` carries them."""
        return asdict(self)


def box_iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float32]:
    """Intersection over union of every pair of boxes.

    Args:
        a: (n, 4) xyxy.
        b: (m, 4) xyxy, same unit.

    Returns:
        (n, m) float32; 0 where both boxes are empty.

    >>> [round(float(v), 3) for v in box_iou([[0, 0, 2, 2]], [[1, 0, 3, 2], [2, 2, 3, 3]])[0]]
    [0.333, 0.0]
    """
    # Edge by edge: on a last axis of two, NumPy takes five times as long.
    left, top, right, bottom = np.asarray(a, np.float32).reshape(-1, 4).T[..., None]
    other_left, other_top, other_right, other_bottom = np.asarray(b, np.float32).reshape(-1, 4).T
    width = np.maximum(np.minimum(right, other_right) - np.maximum(left, other_left), 0)
    height = np.maximum(np.minimum(bottom, other_bottom) - np.maximum(top, other_top), 0)
    areas = (right - left) * (bottom - top) + (other_right - other_left) * (other_bottom - other_top)
    overlap = width * height
    return np.asarray(overlap / (areas - overlap + 1e-7), np.float32)


def match(found: Detections, true: ArrayLike, thresholds: ArrayLike = THRESHOLDS) -> NDArray[np.bool_]:
    """Which detections are right, at each IoU threshold.

    Args:
        found: the detections of one image, best first.
        true: (m, 4) xyxy, the boxes of that image in the same unit.
        thresholds: (t,) IoU thresholds.

    Returns:
        (n, t) bool; every true box is given away at most once per threshold.
    """
    levels = np.asarray(thresholds, np.float32).reshape(-1)
    iou = box_iou(true, found.xyxy)
    right = np.zeros((len(found), len(levels)), bool)
    if not iou.size:
        return right
    taken, column = np.zeros((len(iou), len(levels)), bool), np.arange(len(levels))
    for j in np.flatnonzero((iou >= levels.min()).any(0)):
        free = np.where(taken, np.float32(0), iou[:, j, None])
        best = free.argmax(0)
        right[j] = free[best, column] >= levels
        taken[best, column] |= right[j]
    return right


def mistakes(found: Detections, true: ArrayLike, iou: float = 0.5) -> tuple[int, int]:
    """(missed boxes, false alarms) of one image; all detections given count."""
    hits = int(match(found, true, [iou]).sum())
    return len(np.asarray(true, np.float32).reshape(-1, 4)) - hits, len(found) - hits


def average_precision(recall: Floats, precision: Floats) -> float:
    """Area under the precision envelope, 101-point interpolation.

    Args:
        recall: (n,) rising, one entry per detection in order of confidence.
        precision: (n,) at the same detections.

    >>> round(average_precision(np.array([0.5, 1.0]), np.array([1.0, 1.0])), 4)
    0.995
    """
    reach = np.concatenate(([0.0], recall, [recall[-1] if len(recall) else 1.0], [1.0]))
    height = np.concatenate(([1.0], precision, [0.0], [0.0]))
    envelope = np.flip(np.maximum.accumulate(np.flip(height)))
    heights = np.interp(_RECALLS, reach, envelope)
    return float((np.diff(_RECALLS) * (heights[1:] + heights[:-1]) / 2.0).sum())


def detection_metrics(found: Sequence[Detections], true: Sequence[ArrayLike]) -> DetectionMetrics:
    """Score a detector on a set of images.

    Args:
        found: one `Detections` per image, low confidences included (0.001 and up) for a full curve.
        true: one (m, 4) xyxy array per image, in the same unit; (0, 4) is a negative.

    Raises:
        DataError: the two lists differ in length.
    """
    if len(found) != len(true):
        raise DataError(f"detections of {len(found)} images, but true boxes of {len(true)}")
    boxes = sum(len(np.asarray(t, np.float32).reshape(-1, 4)) for t in true)
    if not boxes or not any(len(f) for f in found):
        return DetectionMetrics()
    right = np.concatenate([match(f, t) for f, t in zip(found, true, strict=True)])
    scores = np.concatenate([f.confidence for f in found])
    order = np.argsort(-scores, kind="stable")
    return _summary(right[order], scores[order], boxes)


def _summary(right: NDArray[np.bool_], scores: NDArray[np.float32], boxes: int) -> DetectionMetrics:
    hits, alarms = right.cumsum(0), (~right).cumsum(0)
    recall, precision = hits / (boxes + 1e-16), hits / (hits + alarms)
    ap = [average_precision(recall[:, t], precision[:, t]) for t in range(right.shape[1])]
    p = np.interp(-_CONFIDENCES, -scores, precision[:, 0], left=1)
    r = np.interp(-_CONFIDENCES, -scores, recall[:, 0], left=0)
    f1 = 2 * p * r / (p + r + 1e-16)
    at = int(_smooth(f1).argmax())
    return DetectionMetrics(ap[0], float(np.mean(ap)), float(p[at]), float(r[at]), float(f1[at]))


def _smooth(curve: Floats) -> Floats:
    width = round(len(curve) * 0.1 * 2) // 2 + 1
    edge = np.ones(width // 2)
    return np.convolve(np.concatenate((edge * curve[0], curve, edge * curve[-1])), np.ones(width) / width, "valid")
