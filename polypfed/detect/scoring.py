"""The confidences a selector decides on: quick int8 for all frames, fp32 again for those it cannot be sure about."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from polypfed.detect.detections import Detections

Detector = Callable[[NDArray[np.uint8]], Detections]


def best_confidence(
    detector: Detector,
    images: Iterable[NDArray[np.uint8]],
    exact: Detector | None = None,
    threshold: float = 0.7,
    margin: float = 0.1,
) -> tuple[NDArray[np.float32], int]:
    """Highest confidence in each image, and how many were looked at twice.

    An int8 model can only decide otherwise than fp32 where its confidence is near the threshold. Asking fp32 there, and
    nowhere else, makes the selection that of fp32 for a small share of its cost.

    Args:
        detector: the serving model, such as a `LiteRTDetector`.
        exact: the fp32 model; None for no second look.
        threshold: the selector's. margin: largest difference that the gate measured.

    >>> from polypfed.detect import Detections
    >>> near = lambda image: Detections([[0, 0, 1, 1]], [image.mean()])
    >>> found = best_confidence(near, [np.full((2, 2), v) for v in (0.1, 0.65, 0.9)], lambda image: near(image + 0.06))
    >>> [round(float(c), 2) for c in found[0]], found[1]
    ([0.1, 0.71, 0.9], 1)
    """
    found, twice = [], 0
    for image in images:
        best = detector(image).best
        if exact is not None and abs(best - threshold) <= margin:
            best, twice = exact(image).best, twice + 1
        found.append(best)
    return np.array(found, np.float32), twice
