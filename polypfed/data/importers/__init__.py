"""Importers for the public polyp data sets, each in its native layout."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from polypfed.core.errors import ConfigError, DataError
from polypfed.data.files import Progress
from polypfed.data.images import image_size
from polypfed.data.importers.base import Contents, Importer, Item
from polypfed.data.importers.cvc_clinicdb import CVC_CLINICDB
from polypfed.data.importers.cvc_colondb import CVC_COLONDB
from polypfed.data.importers.etis import ETIS
from polypfed.data.importers.kvasir_seg import KVASIR_SEG
from polypfed.data.importers.polypdb import POLYPDB
from polypfed.data.importers.polypgen import POLYPGEN
from polypfed.data.importers.run import ImportSummary, Options, Rectangle, run
from polypfed.data.masks import MaskRules

__all__ = ["IMPORTERS", "Contents", "ImportSummary", "Importer", "Item", "MaskRules", "import_dataset"]

IMPORTERS = {i.name: i for i in (KVASIR_SEG, POLYPGEN, CVC_CLINICDB, CVC_COLONDB, ETIS, POLYPDB)}
_DEPTH, _TRIED = 3, 10


def import_dataset(
    name: str,
    src: Path,
    dst: Path,
    *,
    strict: bool = True,
    skip_unannotated: bool = False,
    rules: MaskRules | None = None,
    blacken: Sequence[Rectangle] = (),
    progress: Progress | None = None,
) -> ImportSummary:
    """Turn a public data set into a YOLO folder that `read_yolo` reads: one class, no metadata, safe names.

    Args:
        name: a key of `IMPORTERS`, or "auto" to recognise the layout.
        src: folder of the data set, or one that holds it at most three levels down; its name does not matter.
        dst: folder to create; must not exist or be empty. It appears whole or not at all.
        strict: an image without annotation, or one that cannot be used, is an error; else it is skipped and listed.
        skip_unannotated: leave out, and list, images that a cut-off annotation file does not reach.
        rules: when a part of a mask is a polyp.
        blacken: rectangles (x1, y1, x2, y2), shares of the image, painted black: for text burned into the frames. No
            text is searched for.
        progress: called with (done, total).

    Raises:
        ConfigError: no importer of that name.
        DataError: layout not recognised or not unique, or a problem in strict mode.
    """
    src = Path(src)
    if name != "auto" and name not in IMPORTERS:
        raise ConfigError(f"no importer '{name}'", where="name", remedy=f"Use auto or one of {', '.join(IMPORTERS)}")
    importer, root = _recognise(src, list(IMPORTERS.values()) if name == "auto" else [IMPORTERS[name]])
    options = Options(rules or MaskRules(), tuple(blacken))
    return run(importer, root, importer.contents(root, skip_unannotated), Path(dst), options, strict, progress)


def _recognise(src: Path, wanted: list[Importer]) -> tuple[Importer, Path]:
    if not src.is_dir():
        raise DataError("no such folder", where=src)
    for level in _levels(src):
        found = [
            (importer, folder) for folder in level for importer in wanted if _fits(importer, folder, len(wanted) > 1)
        ]
        if len(found) > 1:
            names = ", ".join(f"{importer.name} in {folder}" for importer, folder in found)
            raise DataError(f"more than one data set: {names}", where=src, remedy="Name the data set and its folder")
        if found:
            return found[0]
    names = wanted[0].name if len(wanted) == 1 else "any data set known here"
    remedy = "Name the data set if it is a copy of unusual size" if len(wanted) > 1 else ""
    raise DataError(f"its folders do not look like {names}", where=src, remedy=remedy)


def _levels(src: Path) -> Iterator[list[Path]]:
    level = [src]
    for _ in range(_DEPTH + 1):
        yield level
        level = [p for folder in level for p in sorted(folder.iterdir()) if p.is_dir() and not p.is_symlink()]


def _fits(importer: Importer, folder: Path, sure: bool) -> bool:
    """Whether the folder has the shape; to be sure, its images must have the right size, too."""
    try:
        if not importer.matches(folder):
            return False
    except DataError:  # a folder of some other shape
        return not sure
    return not sure or importer.size is None or _has_size(importer, folder)


def _has_size(importer: Importer, folder: Path) -> bool:
    for item in importer.contents(folder, True).items[:_TRIED]:
        try:
            return image_size(item.image) == importer.size
        except DataError:  # a damaged image says nothing about the others
            continue
    return False
