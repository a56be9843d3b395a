"""PolypDB: one folder per centre (Simula, Karolinska, Vietnam) or per modality (WLI, NBI, BLI, FICE, LCI).

Each folder holds `images/` and, in `annotations/`, `masks/` or `bounding_boxes/`, masks or COCO files. `wli_train.json`
is cut off: its last 933 images have no annotation and are not negatives. Not tried on the images, only on label files.
"""

import re
from dataclasses import replace
from pathlib import Path

from polypfed.core.errors import DataError
from polypfed.data.importers.base import Contents, Importer, Item, by_stem, child
from polypfed.data.importers.coco import Coco, read_coco

_CENTRES = ("simula", "karolinska", "vietnam")
_MODALITIES = ("wli", "nbi", "bli", "fice", "lci")
_ANNOTATIONS = ("annotations", "masks", "bounding_boxes")
_EXAM = re.compile(r"(.+ \d{6}_\d{6}_.+)_\d+")  # PKHL_15 220831_201027_BN087_028: one patient of one day, then a number


def _parts(root: Path, names: tuple[str, ...]) -> dict[str, Path]:
    found = {name: child(root, name) for name in names}
    return {name: path for name, path in found.items() if path and child(path, "images")}


def _matches(root: Path) -> bool:
    return bool(_parts(root, _CENTRES) or _parts(root, _MODALITIES))


def _contents(root: Path, skip_unannotated: bool) -> Contents:
    centres, modalities = _parts(root, _CENTRES), _parts(root, _MODALITIES)
    light = {stem: name.upper() for name, path in modalities.items() for stem in _images(path)}
    items: list[Item] = []
    for name, folder in (centres or modalities).items():
        masks, lists = _annotations(folder)
        images = _images(folder)
        if not skip_unannotated:
            _refuse_cut(lists, set(images) - set(masks))
        centre = f"polypdb_{name}" if centres else "polypdb"
        for stem, path in images.items():
            exam = _EXAM.fullmatch(stem)
            item = Item(path, centre=centre, group=exam[1] if exam else "", modality=light.get(stem, ""))
            items.append(_annotated(item, masks, lists))
    return Contents(items, [] if centres else ["centres are not known: the folders are per modality"])


def _images(folder: Path) -> dict[str, Path]:
    images = child(folder, "images")
    return _below(images) if images else {}


def _below(folder: Path) -> dict[str, Path]:
    """Image files by stem, in sub-folders (splits) too."""
    return by_stem(sorted(folder.rglob("*")))


def _annotations(folder: Path) -> tuple[dict[str, Path], list[Coco]]:
    """Masks by stem, and COCO files, of one centre or modality."""
    masks: dict[str, Path] = {}
    lists: list[Coco] = []
    for name in _ANNOTATIONS:
        if part := child(folder, name):
            masks |= {stem.removesuffix("_mask"): path for stem, path in _below(part).items()}
            lists += [read_coco(path) for path in sorted(part.rglob("*.json"))]
    return masks, lists


def _refuse_cut(lists: list[Coco], unmasked: set[str]) -> None:
    for coco in lists:
        if lost := coco.unreached & unmasked:
            problem = f"annotations are cut off: the last {len(lost)} images have none"
            raise DataError(problem, where=coco.path, remedy="Add masks, or set skip_unannotated to leave them out")


def _annotated(item: Item, masks: dict[str, Path], lists: list[Coco]) -> Item:
    stem = item.image.stem
    if stem in masks:
        return replace(item, mask=masks[stem])
    for coco in lists:
        if stem in coco.boxes:
            return replace(item, boxes=coco.boxes[stem])
    cut = any(stem in coco.unreached for coco in lists)
    return replace(item, problem="not reached by a cut-off annotation file" if cut else "", excused=cut)


POLYPDB = Importer("polypdb", _matches, _contents)
