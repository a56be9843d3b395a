"""Data sets as YOLO trees: `images/` and `labels/` side by side, one class, one label file per image.

A third file, `samples.json`, keeps what YOLO has no place for: centre, group, source, original name, modality. It may
be missing. `*.cache` files are never read: ultralytics loads them as pickles.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from polypfed.core.errors import DataError
from polypfed.data.files import (
    Progress,
    canonical_json,
    inside,
    list_folder,
    new_folder,
    read_json,
    refuse_equal,
    safe_name,
)
from polypfed.data.images import ImageFile, decode, encode, read_image
from polypfed.data.labels import label_text, read_labels
from polypfed.data.sample import Sample

SIDECAR = "samples.json"
_SCHEMA = "polypfed.samples/1"
_FIELDS = ("centre", "group", "source", "name", "modality")
_TRAINABLE = (".jpg", ".jpeg", ".png", ".bmp")


def read_yolo(folder: Path, *, centre: str = "", source: str = "", progress: Progress | None = None) -> list[Sample]:
    """The samples of a YOLO folder, by id (code point). Every file is checked, no pixel is decoded.

    Args:
        folder: holds `images/` and `labels/`.
        centre, source: for samples about which `samples.json` says nothing.

    Raises:
        DataError: the first problem met: empty or missing folder, image without label, label without image, a label
            line that makes no sense, a damaged or huge image, a link out of the folder. `check_dataset` lists all.
    """
    found: list[Sample] = []
    for item in scan_yolo(folder, progress=progress):
        if isinstance(item, DataError):
            raise item
        found.append(replace(item, centre=item.centre or centre, source=item.source or source))
    return found


def scan_yolo(folder: Path, progress: Progress | None = None) -> Iterator[Sample | DataError]:
    """What `read_yolo` does, but a problem is an item like a sample, and the next file follows."""
    folder = Path(folder)
    try:
        images, labels = (list_folder(inside(folder, folder / name)) for name in ("images", "labels"))
        known = _sidecar(folder)
    except DataError as fault:
        yield fault
        return
    if not images:
        yield DataError("holds no image", where=folder / "images")
    stems = {path.stem for path in images}
    for path in labels:
        if path.stem not in stems or path.suffix != ".txt":
            yield DataError("label without image", where=path, remedy="Delete it or add the image")
    seen: dict[str, Path] = {}
    for number, path in enumerate(images, 1):
        try:
            yield _sample(folder, path, known, seen)
        except DataError as fault:
            yield fault
        if progress:
            progress(number, len(images))


def _sample(folder: Path, path: Path, known: dict[str, dict[str, str]], seen: dict[str, Path]) -> Sample:
    name = safe_name(path.stem)
    if (other := seen.setdefault(name.casefold(), path)) is not path:
        raise DataError(f"the same name as '{other.name}'", where=path, remedy="Rename one, with its label")
    if path.suffix.lower() not in _TRAINABLE:
        raise DataError(f"not an image type for training ({', '.join(_TRAINABLE)})", where=path, remedy="Convert it")
    size = read_image(inside(folder, path)).size
    label = folder / "labels" / f"{path.stem}.txt"
    if not os.path.lexists(label):
        remedy = f"Add {label.name}, empty if no polyp is visible"
        raise DataError("image without label", where=path, remedy=remedy)
    boxes = read_labels(inside(folder, label), size)
    about = {"name": path.name if name != path.stem else "", **known.get(name, {})}
    return Sample(id=name, image=path, boxes=boxes, size=size, **about)


def _sidecar(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / SIDECAR
    if not os.path.lexists(path):
        return {}
    found = read_json(inside(folder, path))
    rows = found.get("samples") if isinstance(found, dict) and found.get("schema") == _SCHEMA else None
    if not isinstance(rows, dict) or not all(_is_row(row) for row in rows.values()):
        raise DataError("not a list of samples of this version", where=path, remedy="Delete it or import again")
    return rows


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and set(row) <= set(_FIELDS) and all(isinstance(v, str) for v in row.values())


def write_yolo(samples: Sequence[Sample], folder: Path, *, progress: Progress | None = None) -> None:
    """Write a YOLO folder that `read_yolo` gives back as it was; it appears whole or not at all.

    An image without metadata that lies upright is hard-linked where the file system can, else copied; any other is
    written without metadata, upright. Names come from `Sample.id`.

    Raises:
        DataError: `folder` exists and is not empty, two ids are equal, or an image cannot be used.
    """
    with new_folder(Path(folder)) as temporary:
        fill_yolo(samples, temporary, progress=progress)


def fill_yolo(samples: Sequence[Sample], folder: Path, *, progress: Progress | None = None) -> list[Path]:
    """What `write_yolo` does, into a folder that is already temporary; returns the image files."""
    files: list[Path] = []
    refuse_equal((safe_name(sample.id) for sample in samples), folder)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(samples, 1):
        name = safe_name(sample.id)
        (folder / "labels" / f"{name}.txt").write_bytes(label_text(sample.boxes, sample.size, sample.image).encode())
        files.append(put_image(read_image(sample.image), sample.image, folder / "images" / name))
        if progress:
            progress(number, len(samples))
    write_sidecar(samples, folder)
    return files


def write_sidecar(samples: Sequence[Sample], folder: Path) -> None:
    """Write `samples.json` beside `images/` and `labels/`."""
    rows = {safe_name(s.id): {k: v for k in _FIELDS if (v := getattr(s, k))} for s in samples}
    (folder / SIDECAR).write_bytes(canonical_json({"schema": _SCHEMA, "samples": rows}))


def put_image(file: ImageFile, source: Path, target: Path) -> Path:
    """Write `source`, already read as `file`, to `target` plus a suffix, upright and without metadata.

    JPEG and PNG keep their compressed pixels if they are upright. The rest is decoded and written as JPEG (from JPEG)
    or PNG.
    """
    if file.kind in ("JPEG", "PNG") and file.orientation == 1:
        target = target.with_name(target.name + (".jpg" if file.kind == "JPEG" else ".png"))
        if file.same:
            _link(source, target)
        else:
            target.write_bytes(file.clean)
        return target
    kind = "JPEG" if file.kind == "JPEG" else "PNG"
    target = target.with_name(target.name + (".jpg" if kind == "JPEG" else ".png"))
    target.write_bytes(encode(decode(file, "RGB", source), kind))
    return target


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links, or a policy against them
        shutil.copyfile(source, target)
