"""What the importers share: they say which files belong together, and one pipeline does the rest."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polypfed.data.files import list_folder, refuse_equal

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class Item:
    """One image of a data set with what its annotation is made of.

    A mask decides if there is one, else `boxes` (n, 4) float32 xyxy pixels, n = 0 for a negative. Where both are
    missing the image has no annotation, which is never the same as a negative; `problem` then says more. `excused`
    items are skipped even where problems are errors.
    """

    image: Path
    mask: Path | None = None
    boxes: NDArray[np.float32] | None = None
    centre: str = ""
    group: str = ""
    modality: str = ""
    problem: str = ""
    excused: bool = False


@dataclass(frozen=True)
class Contents:
    """What an importer found: items, what the user should know, and boxes left out because they are slivers."""

    items: Sequence[Item]
    warnings: Sequence[str] = ()
    slivers: int = 0


@dataclass(frozen=True)
class Importer:
    """A public data set in its own layout.

    Args:
        name: of the data set; becomes `Sample.source`.
        matches: whether a folder has the data set's shape, whatever its name.
        contents: pairs up the files of such a folder; second argument: leave out what a truncated annotation file
            does not reach, instead of refusing it.
        size: (width, height) of the images, where only that tells data sets of one shape apart.
    """

    name: str
    matches: Callable[[Path], bool]
    contents: Callable[[Path, bool], Contents]
    size: tuple[int, int] | None = field(default=None)


def child(root: Path, *names: str) -> Path | None:
    """The first sub-folder of `root` with one of the (lower-case) names, whatever its case."""
    folders = {p.name.lower(): p for p in sorted(root.iterdir(), reverse=True) if p.is_dir()}
    return next((folders[name] for name in names if name in folders), None)


def pictures(folder: Path | None) -> dict[str, Path]:
    """Image files of a folder by stem, in code-point order."""
    return by_stem(list_folder(folder)) if folder else {}


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Image files among `paths` by stem. Raises DataError if two have the same."""
    found = [path for path in paths if path.suffix.lower() in IMAGES]
    refuse_equal((path.stem for path in found), found[0].parent if found else "")
    return {path.stem: path for path in found}


def orphans(kind: str, names: set[str]) -> list[str]:
    """A warning about annotations whose image is not there, if any."""
    return [f"{len(names)} {kind} without an image, such as '{min(names)}'"] if names else []
