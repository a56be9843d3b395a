"""PolypGen v3, single frames: `data_C1..6/{images_Ck,masks_Ck,bbox_Ck}`, or copies with `images/` and `masks/` only.

Ali et al., Scientific Data 10:75, 2023. The centre follows from the file's name; "positive" and "negative" in a name
say nothing about the frame. A text file is missing for 64 images, so masks decide; an empty one is a negative.
"""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import DataError
from polypfed.data.files import read_file
from polypfed.data.images import image_size
from polypfed.data.importers.base import Contents, Importer, Item, child, orphans, pictures

_NAMES = (
    (re.compile(r"C3_EndoCV2021_\d+"), "c3"),
    (re.compile(r"EndoCV2021_C5_\d+"), "c5"),
    (re.compile(r"EndoCV2021_C6_\d+"), "c6"),
    (re.compile(r"EndoCV2021_\d+"), "c2"),
    (re.compile(r"(?P<group>\d+)_endocv2021_(positive|negative)_\d+( \d+)?"), "c4"),
    (re.compile(r"(?:(?P<group>\d+)OLCV1_)?100[HS]\d{4}"), "c1"),
)
_FOLDER = re.compile(r"data_(C[1-6])", re.IGNORECASE)


def place(stem: str) -> tuple[str, str] | None:
    """Centre ("c1" to "c6") and group ("" if unknown) of a frame by its name; None for a name of no known form.

    >>> place("31_endocv2021_positive_329 2")
    ('c4', 'c4-31')
    """
    for pattern, centre in _NAMES:
        if match := pattern.fullmatch(stem):
            number = match.groupdict().get("group")
            return centre, f"{centre}-{number}" if number else ""
    return None


def _matches(root: Path) -> bool:
    if _centres(root):
        return True
    images = pictures(child(root, "images"))
    return bool(images) and child(root, "masks") is not None and all(map(place, images))


def _centres(root: Path) -> dict[str, Path]:
    """Centre -> its folder, if there is one folder per centre."""
    folders = {m[1].lower(): p for p in root.iterdir() if p.is_dir() and (m := _FOLDER.fullmatch(p.name))}
    return {k: p for k, p in sorted(folders.items()) if child(p, f"images_{k}")}


def _contents(root: Path, _: bool) -> Contents:
    centres = _centres(root)
    items: list[Item] = []
    warnings: list[str] = []
    for centre, folder in centres.items() if centres else [("", root)]:
        images, masks, boxes = _folders(folder, centre)
        items += [_item(stem, path, masks, boxes, centre) for stem, path in images.items()]
        warnings += orphans("masks", set(masks) - set(images))
        warnings += orphans("box files", set(boxes) - set(images))
    unknown = sorted(p.name for p in root.iterdir() if p.is_dir() and p not in centres.values()) if centres else []
    if unknown:
        warnings.append(f"left out, not single frames: {', '.join(unknown)}")
    return Contents(_odd_sizes(items), warnings)


def _folders(folder: Path, centre: str) -> tuple[dict[str, Path], dict[str, Path], dict[str, Path]]:
    """Images, masks and box files by the image's stem."""
    end = f"_{centre}" if centre else ""
    images, masks = pictures(child(folder, "images" + end)), pictures(child(folder, "masks" + end))
    texts = child(folder, "bbox" + end)
    boxes = {path.stem: path for path in sorted(texts.glob("*.txt"))} if texts else {}
    return images, _unmasked(masks), _unmasked(boxes)


def _unmasked(found: dict[str, Path]) -> dict[str, Path]:
    return {stem.removesuffix("_mask"): path for stem, path in found.items()}


def _item(stem: str, path: Path, masks: dict[str, Path], texts: dict[str, Path], folder: str) -> Item:
    found = place(stem)
    if found is None:
        return Item(path, problem="the name fits no centre of PolypGen")
    centre, group = found
    if folder and folder != centre:
        return Item(path, problem=f"named like centre {centre}, but in the folder of {folder}")
    mask = masks.get(stem)
    boxes = _boxes(texts[stem]) if stem in texts and mask is None else None
    return Item(path, mask, boxes, centre=f"polypgen_{centre}", group=group)


def _boxes(path: Path) -> NDArray[np.float32]:
    rows = [line.split() for line in read_file(path, cap=2**20).decode("utf-8", "replace").splitlines()]
    try:
        found = [[float(value) for value in row[1:]] for row in rows if row]
        return np.array(found, np.float32).reshape(len(found), 4)
    except ValueError:
        raise DataError("not lines of `polyp xmin ymin xmax ymax`", where=path) from None


def _odd_sizes(items: list[Item]) -> list[Item]:
    """Frames of centre 5 of an unusual size are taken as one sequence per size."""
    sizes = {item.image: image_size(item.image) for item in items if item.centre == "polypgen_c5"}
    common = max(Counter(sizes.values()).items(), key=lambda kv: (kv[1], kv[0]), default=((0, 0), 0))[0]
    odd = {path: f"c5-{w}x{h}" for path, (w, h) in sizes.items() if (w, h) != common}
    return [replace(item, group=odd.get(item.image, item.group)) for item in items]


POLYPGEN = Importer("polypgen", _matches, _contents)
