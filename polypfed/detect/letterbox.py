"""From an image of any shape to the square a detector wants, and its boxes back again (cv2, as ultralytics does it)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import ConfigError
from polypfed.core.extras import require
from polypfed.detect.detections import Boxes

Pixels = NDArray[np.uint8]
GREY = 114


@dataclass(frozen=True)
class Placement:
    """Where an image lies in its square: original pixels times (scale_x, scale_y) plus (left, top)."""

    scale: tuple[float, float]
    offset: tuple[int, int]
    size: tuple[int, int]

    def back(self, xyxy: NDArray[np.floating]) -> Boxes:
        """Boxes of the square as boxes of the original image: (n, 4) float32 pixels, clipped to it."""
        shift = np.array(self.offset * 2, np.float64)
        scale = np.array(self.scale * 2, np.float64)
        limit = np.array(self.size * 2, np.float64)
        return np.clip((np.asarray(xyxy, np.float64) - shift) / scale, 0, limit).astype(np.float32)


def shrink(image: Pixels, imgsz: int) -> Pixels:
    """The image with its longer side at `imgsz`, aspect kept: (h, w, 3) uint8. The same array if it fits already.

    Shrinking averages areas: linear interpolation, as in ultralytics, skips pixels and lets glints flicker.
    """
    cv2 = require("cv2", extra="yolo")
    height, width = image.shape[:2]
    ratio = imgsz / max(height, width)
    if ratio == 1:
        return image
    to = (max(1, min(round(width * ratio), imgsz)), max(1, min(round(height * ratio), imgsz)))
    out: Pixels = cv2.resize(image, to, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)
    return out


def square(image: Pixels, out: Pixels, size: tuple[int, int] | None = None) -> Placement:
    """Draw `image` into the middle of `out` on grey.

    Args:
        image: (h, w, 3) uint8, as `shrink` returns it.
        out: (imgsz, imgsz, 3) uint8, overwritten.
        size: (width, height) of the original image that answers are for; by default the image's own.
    """
    height, width = image.shape[:2]
    if height > out.shape[0] or width > out.shape[1]:
        raise ConfigError(f"an image of {width} x {height} does not fit {out.shape[1]} pixels", where="imgsz")
    left, top = (out.shape[1] - width) // 2, (out.shape[0] - height) // 2
    out[:] = GREY
    out[top : top + height, left : left + width] = image
    original = (width, height) if size is None else size
    return Placement((width / original[0], height / original[1]), (left, top), original)
