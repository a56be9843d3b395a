"""Box lists in COCO form, and the sign that one was cut off."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import DataError
from polypfed.data.files import read_json

_LONG_RUN = 10  # images without a box at the end of a file; more is no chance


@dataclass(frozen=True, eq=False)
class Coco:
    """Boxes (n, 4) float32 xyxy pixels by image stem, and the images at the end that no annotation reaches."""

    path: Path
    boxes: dict[str, NDArray[np.float32]]
    unreached: frozenset[str]


def read_coco(path: Path) -> Coco:
    """Read a COCO file with one category, whatever its name.

    An image without a box is a negative, unless a long run of such images ends the file: then annotations were cut off
    and these images are `unreached`.

    Raises:
        DataError: not a COCO file, or several categories.
    """
    found = read_json(path)
    try:
        names = {int(row["id"]): Path(str(row["file_name"])).stem for row in found["images"]}
        rows = [(int(row["image_id"]), row["category_id"], row["bbox"]) for row in found["annotations"]]
        boxes: dict[int, list[list[float]]] = {number: [] for number in names}
        for number, _, (x, y, w, h) in rows:
            boxes[number].append([x, y, x + w, y + h])
        categories = {category for _, category, _ in rows}
        arrays = {n: np.array(b, np.float32).reshape(-1, 4) for n, b in boxes.items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise DataError("not a COCO file", where=path) from None
    if len(categories) > 1:
        raise DataError("more than one category, and only polyps are understood", where=path)
    tail = _tail(boxes)
    cut = frozenset(names[n] for n in tail) if len(tail) > _LONG_RUN else frozenset()
    return Coco(path, {names[n]: a for n, a in arrays.items() if names[n] not in cut}, cut)


def _tail(boxes: dict[int, list[list[float]]]) -> list[int]:
    """Ids after the last one that has a box."""
    last = max((number for number, found in boxes.items() if found), default=-1)
    return sorted(number for number in boxes if number > last)
