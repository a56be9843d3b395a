"""Kvasir-SEG: `images/`, `masks/` (JPEG, three channels) and `kavsir_bboxes.json` (misspelt in the official set).

Jha et al., MMM 2020. Patients are not known, so groups are left to the near-duplicate search. HyperKvasir holds the
same images.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import DataError
from polypfed.data.files import read_json
from polypfed.data.importers.base import Contents, Importer, Item, child, orphans, pictures

_JSON = ("kavsir_bboxes.json", "kvasir_bboxes.json")
_STEM = re.compile(r"c[jk][a-z0-9]{20,26}")
_SLIVER = 8  # px; seven boxes are strips of 3 px at the border


def _json(root: Path) -> Path | None:
    return next((root / name for name in _JSON if (root / name).is_file()), None)


def _matches(root: Path) -> bool:
    stems = pictures(child(root, "images"))
    return bool(stems) and (_json(root) is not None or all(map(_STEM.fullmatch, stems)))


def _contents(root: Path, _: bool) -> Contents:
    images, masks = pictures(child(root, "images")), pictures(child(root, "masks"))
    listed = _boxes(path) if (path := _json(root)) else {}
    items, slivers = [], 0
    for stem, path in images.items():
        boxes = None
        if stem in listed and stem not in masks:
            sides = listed[stem][:, 2:] - listed[stem][:, :2]
            wide = (sides >= _SLIVER).all(axis=1)
            boxes, slivers = listed[stem][wide], slivers + int((~wide).sum())
        items.append(Item(path, masks.get(stem), boxes, centre="kvasir_seg"))
    warnings = orphans("masks", set(masks) - set(images)) + orphans("JSON entries", set(listed) - set(images))
    return Contents(items, warnings, slivers)


def _boxes(path: Path) -> dict[str, NDArray[np.float32]]:
    """Pixel boxes per image. Their ends are exclusive already: nothing is added."""
    found = read_json(path)
    try:
        return {str(stem): _corners(row["bbox"]) for stem, row in found.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError("not the box list of Kvasir-SEG", where=path) from None


def _corners(rows: Any) -> NDArray[np.float32]:
    corners = [[row[key] for key in ("xmin", "ymin", "xmax", "ymax")] for row in rows]
    return np.array(corners, np.float32).reshape(-1, 4)


KVASIR_SEG = Importer("kvasir_seg", _matches, _contents)
