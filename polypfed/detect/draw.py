"""Boxes and confidences onto frames."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed.core.extras import require
from polypfed.detect.detections import Detections

Pixels = NDArray[np.uint8]
SURE, UNSURE = (60, 220, 90), (255, 190, 40)
_INK, _BACK = (255, 255, 255), (20, 20, 20)


def annotate(image: Pixels, found: Detections, threshold: float = 0.7, caption: str = "") -> Pixels:
    """A copy of a frame with its detections.

    Args:
        image: (h, w, 3) uint8 RGB.
        found: in pixels of it; green at or above `threshold`, amber below.
        caption: a line in the upper left corner.
    """
    cv2 = require("cv2", extra="edge")
    out = np.ascontiguousarray(image).copy()
    scale = max(out.shape[:2]) / 900
    thick, size = max(1, round(2 * scale)), max(0.35, 0.7 * scale)
    for box, confidence in zip(found.xyxy, found.confidence, strict=True):
        colour = SURE if confidence >= np.float32(threshold) else UNSURE
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        cv2.rectangle(out, (x1, y1), (x2, y2), colour, thick, cv2.LINE_AA)
        _label(cv2, out, f"{confidence:.2f}", (x1, y1), size, colour)
    if caption:
        _label(cv2, out, caption, (0, 0), size, _BACK)
    return out


def _label(cv2: Any, out: Pixels, text: str, corner: tuple[int, int], size: float, back: tuple[int, int, int]) -> None:
    """Above `corner`, or below it where there is no room."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    (width, height), base = cv2.getTextSize(text, font, size, 1)
    left = min(max(corner[0], 0), max(0, out.shape[1] - width - 6))
    top = corner[1] - height - base - 4 if corner[1] > height + base + 4 else max(corner[1], 0)
    cv2.rectangle(out, (left, top), (left + width + 6, top + height + base + 4), back, -1)
    ink = _INK if back == _BACK else _BACK
    cv2.putText(out, text, (left + 3, top + height + 2), font, size, ink, 1, cv2.LINE_AA)
