"""The gate in front of a converted model: does it decide as the float model does?

Average precision only ranks, and does not see that every confidence has fallen below the selector's threshold. So what
is compared is the decision itself, the confidence behind it, and the boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from polypfed.core.errors import DataError
from polypfed.detect.detections import Detections
from polypfed.detect.metrics import detection_metrics, match

_SURE, _STILL_SURE = 0.65, 0.55  # a model that saturates at 0.5 fails here whatever the threshold is


@dataclass(frozen=True)
class Limits:
    """What a converted model must keep.

    Args:
        agreement: least share of frames on the same side of the threshold.
        difference: of a frame's best confidence, exceeded by at most one frame in a hundred. The largest of all grows
            with the number of frames, so that a longer test would refuse what a short one passes.
        boxes: least share of the float model's detections at or above the threshold that are found again, IoU 0.5.
        ap50: largest loss of AP50, where there are labels.
    """

    agreement: float = 0.98
    difference: float = 0.10
    boxes: float = 0.95
    ap50: float = 0.01


@dataclass(frozen=True)
class Agreement:
    """How a candidate compares with the float model over `frames`; see `Limits`.

    `largest` is the largest difference of a best confidence. `ap50` is None without labels.
    """

    frames: int
    agreement: float
    difference: float
    boxes: float
    ceiling: bool
    ap50: float | None = None
    largest: float = 0.0

    def failures(self, limits: Limits) -> list[str]:
        """What it fails, in words; empty if it passes."""
        found = []
        if self.agreement < limits.agreement:
            found.append(f"decisions agree on {self.agreement:.3f} of the frames, not {limits.agreement}")
        if self.difference > limits.difference:
            found.append(f"confidences differ by {self.difference:.3f} and more, not by {limits.difference}")
        if self.boxes < limits.boxes:
            found.append(f"{self.boxes:.3f} of the boxes are found again, not {limits.boxes}")
        if self.ceiling:
            found.append(f"confidences stay below {_STILL_SURE} where the float model exceeds {_SURE}")
        if self.ap50 is not None and self.ap50 > limits.ap50:
            found.append(f"AP50 falls by {self.ap50:.3f}, more than {limits.ap50}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a record."""
        return {k: v for k, v in self.__dict__.items() if v is not None}


def compare(
    reference: Sequence[Detections],
    candidate: Sequence[Detections],
    threshold: float = 0.7,
    true: Sequence[ArrayLike] | None = None,
) -> Agreement:
    """Compare two models frame by frame.

    Args:
        reference, candidate: what they found, from a low confidence up (0.001).
        threshold: the selector's; a frame below it is hard.
        true: boxes per frame, for AP50.

    Raises:
        DataError: no frames, or not as many in both.
    """
    if not reference or len(reference) != len(candidate):
        raise DataError(f"{len(reference)} frames of one model, {len(candidate)} of the other", where="frames")
    first, second = (np.array([d.best for d in found], np.float32) for found in (reference, candidate))
    limit = np.float32(threshold)
    loss = None
    if true is not None:
        loss = detection_metrics(reference, true).map50 - detection_metrics(candidate, true).map50
    sure, apart = first > _SURE, np.abs(first - second)
    return Agreement(
        len(first),
        float(((first < limit) == (second < limit)).mean()),
        float(np.quantile(apart, 0.99, method="lower")),
        _found_again(reference, candidate, threshold),
        bool((second[sure] <= _STILL_SURE).any()),
        loss,
        float(apart.max()),
    )


def _found_again(reference: Sequence[Detections], candidate: Sequence[Detections], threshold: float) -> float:
    wanted = found = 0
    for old, new in zip(reference, candidate, strict=True):
        boxes = old.above(threshold).xyxy
        wanted += len(boxes)
        found += int(match(new.above(threshold / 2), boxes, [0.5]).sum())
    return found / wanted if wanted else 1.0
