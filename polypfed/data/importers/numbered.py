"""Sets whose frames are numbered: CVC-ClinicDB, CVC-ColonDB and ETIS-LaribPolypDB.

Official copies and those that circulate differ in folder names and file types, and the sets have one shape; the size of
the frames tells them apart.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from polypfed.data.importers.base import Contents, Importer, Item, child, orphans, pictures

_IMAGE_FOLDERS = ("original", "images", "etis-laribpolypdb")
_MASK_FOLDERS = ("ground truth", "groundtruth", "masks")
_NUMBER, _MASK = re.compile(r"(\d+)"), re.compile(r"p?(\d+)")  # other masks than p show no polyp
_MIXED_MASK = re.compile(r"p(\d+)")
_NO_SEQUENCES = "sequences are not known: frames are grouped with their near-duplicates when they are divided"


def _numbers(found: dict[str, Path], pattern: re.Pattern[str]) -> dict[int, Path]:
    matches = ((pattern.fullmatch(stem.lower()), path) for stem, path in found.items())
    return {int(match[1]): path for match, path in matches if match}


def _pairs(root: Path) -> tuple[dict[int, Path], dict[int, Path]]:
    """Images and masks by number: two folders, or one in which masks begin with p."""
    images, masks = child(root, *_IMAGE_FOLDERS), child(root, *_MASK_FOLDERS)
    if images and masks:
        return _numbers(pictures(images), _NUMBER), _numbers(pictures(masks), _MASK)
    if any(path.is_dir() for path in root.iterdir()):
        return {}, {}
    mixed = pictures(root)
    return _numbers(mixed, _NUMBER), _numbers(mixed, _MIXED_MASK)


def _matches(root: Path) -> bool:
    return all(_pairs(root))


def _contents(root: Path, _: bool, name: str, group: Callable[[int], str], warning: str) -> Contents:
    images, masks = _pairs(root)
    items = [Item(path, masks.get(n), centre=name, group=group(n)) for n, path in sorted(images.items())]
    missing = orphans("masks", {str(n) for n in set(masks) - set(images)})
    return Contents(items, missing + ([warning] if warning else []))


def numbered(name: str, size: tuple[int, int], group: Callable[[int], str] | None = None) -> Importer:
    """An importer for a numbered set; `group` gives the sequence of a frame by its number."""
    warning = "" if group else _NO_SEQUENCES
    contents = partial(_contents, name=name, group=group or (lambda n: ""), warning=warning)
    return Importer(name, _matches, contents, size)
