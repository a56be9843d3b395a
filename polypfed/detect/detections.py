"""What a detector found in one image."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import DataError

Boxes = NDArray[np.float32]


def _no_boxes() -> Boxes:
    return np.zeros((0, 4), np.float32)


def _no_scores() -> Boxes:
    return np.zeros(0, np.float32)


@dataclass(frozen=True)
class Detections:
    """Boxes of one image with their confidences, best first.

    Args:
        xyxy: (n, 4) float32, pixels of the original image.
        confidence: (n,) float32 in [0, 1].

    Raises:
        DataError: the two lengths differ.

    >>> one = Detections(np.array([[1, 2, 3, 4]]), np.array([0.9]))
    >>> len(one), round(one.best, 2), len(Detections()), Detections().best
    (1, 0.9, 0, 0.0)
    """

    xyxy: Boxes = field(default_factory=_no_boxes)
    confidence: NDArray[np.float32] = field(default_factory=_no_scores)

    def __post_init__(self) -> None:
        boxes = np.asarray(self.xyxy, np.float32).reshape(-1, 4)
        scores = np.asarray(self.confidence, np.float32).reshape(-1)
        if len(boxes) != len(scores):
            raise DataError(f"{len(boxes)} boxes but {len(scores)} confidences")
        order = np.argsort(-scores, kind="stable")
        object.__setattr__(self, "xyxy", boxes[order])
        object.__setattr__(self, "confidence", scores[order])

    def __len__(self) -> int:
        return len(self.confidence)

    @property
    def best(self) -> float:
        """Highest confidence; an image without a detection counts as 0."""
        return float(self.confidence[0]) if len(self) else 0.0

    def above(self, threshold: float) -> "Detections":
        """Those with a confidence of at least `threshold`, compared in float32."""
        keep = self.confidence >= np.float32(threshold)
        return Detections(self.xyxy[keep], self.confidence[keep])
