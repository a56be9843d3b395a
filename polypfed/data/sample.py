"""The one form in which every room of the library sees an annotated frame."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import DataError

Boxes = NDArray[np.float32]
_SLACK = 1e-2  # pixels; float32 holds an edge at 20,000 px to about 2e-3


@dataclass(frozen=True, eq=False)
class Sample:
    """An image file with its polyps.

    Args:
        id: unique in its source; the file's stem, made safe by `safe_name`.
        image: the image file.
        boxes: (n, 4) float32, xyxy, pixels of the upright image; n = 0 is a negative. Read-only after construction.
        size: (width, height) of the upright image, pixels.
        centre: hospital or centre.
        group: patient, exam or sequence; never divided. "" means not known.
        source: name of the data set.
        name: file name the data set gave the image; "" if unchanged.
        modality: light, such as "WLI" or "NBI"; "" means not known.

    Raises:
        DataError: boxes of another shape, not finite, empty, or outside the image.
    """

    id: str
    image: Path
    boxes: Boxes
    size: tuple[int, int]
    centre: str = ""
    group: str = ""
    source: str = ""
    name: str = ""
    modality: str = ""

    def __post_init__(self) -> None:
        boxes = np.array(self.boxes, np.float32)
        boxes = np.zeros((0, 4), np.float32) if boxes.size == 0 else boxes
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise DataError(f"boxes have shape {boxes.shape}, not (n, 4)", where=self.image)
        limit = np.array([*self.size, *self.size], np.float32) + _SLACK
        for number, box in enumerate(boxes, 1):
            if not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
                raise DataError(f"box {number} is empty or not finite: {box.tolist()}", where=self.image)
            if (box < -_SLACK).any() or (box > limit).any():
                raise DataError(f"box {number} lies outside the image: {box.tolist()}", where=self.image)
        boxes.setflags(write=False)
        object.__setattr__(self, "boxes", boxes)

    @property
    def negative(self) -> bool:
        """No polyp is visible."""
        return len(self.boxes) == 0
