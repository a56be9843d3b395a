"""Smoothing over time: a box keeps its confidence through a bad frame, and a flash of one frame stays weak.

Detections are linked to tracks by overlap, best first, and each track's confidence and box are exponential averages.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import ConfigError
from polypfed.detect.detections import Detections
from polypfed.detect.metrics import box_iou


@dataclass
class _Track:
    number: int
    box: NDArray[np.float32]
    confidence: float
    missed: int = 0


@dataclass
class Smoother:
    """Call it with each frame's detections in order.

    Args:
        weight: share of the newest frame in the average; 1 changes nothing.
        iou: least overlap of a detection with its track.
        patience: frames a track survives without a detection; its confidence fades meanwhile.
        least: tracks weaker than this are not shown.
    """

    weight: float = 0.5
    iou: float = 0.3
    patience: int = 5
    least: float = 0.25
    _tracks: list[_Track] = field(default_factory=list, repr=False)
    _count: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        for name in ("weight", "iou", "least"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"must lie above 0 and at most at 1, got {getattr(self, name)}", where=name)
        if self.patience < 0:
            raise ConfigError(f"must not be negative, got {self.patience}", where="patience")

    def __call__(self, found: Detections) -> Detections:
        """The smoothed detections of this frame, best first."""
        return self.tracked(found)[0]

    def tracked(self, found: Detections) -> tuple[Detections, list[int]]:
        """The same, and the number of each one's track."""
        free = set(range(len(self._tracks)))
        overlaps = box_iou(found.xyxy, np.array([t.box for t in self._tracks], np.float32).reshape(-1, 4))
        for i, (box, confidence) in enumerate(zip(found.xyxy, found.confidence, strict=True)):
            near = max(free, key=lambda j: overlaps[i, j], default=None)
            if near is not None and overlaps[i, near] >= self.iou:
                free.discard(near)
                self._follow(self._tracks[near], box, float(confidence))
            else:
                self._count += 1
                self._tracks.append(_Track(self._count, box.copy(), float(confidence) * self.weight))
        for j in free:
            self._tracks[j].missed += 1
            self._tracks[j].confidence *= 1 - self.weight
        self._tracks = [t for t in self._tracks if t.missed <= self.patience and t.confidence > 0.01]
        shown = sorted((t for t in self._tracks if t.confidence >= self.least), key=lambda t: -t.confidence)
        boxes, scores = [t.box for t in shown], [t.confidence for t in shown]
        return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores)), [t.number for t in shown]

    def _follow(self, track: _Track, box: NDArray[np.float32], confidence: float) -> None:
        track.box = (1 - self.weight) * track.box + np.float32(self.weight) * box
        track.confidence += self.weight * (confidence - track.confidence)
        track.missed = 0
