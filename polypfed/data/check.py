"""Everything that is wrong with a data folder, in one list."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polypfed.core.errors import DataError
from polypfed.data.files import Progress
from polypfed.data.images import decode, read_image
from polypfed.data.manifest import FILE, HELD_OUT, Manifest
from polypfed.data.sample import Sample
from polypfed.data.yolo import scan_yolo


@dataclass(frozen=True)
class Finding:
    """One problem: an "error" keeps the folder from being used, a "warning" does not."""

    level: Literal["error", "warning"]
    where: str
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {DataError(self.problem, where=self.where, remedy=self.remedy)}"


@dataclass(frozen=True)
class Check:
    """What a folder holds and what is wrong with it."""

    images: int
    boxes: int
    negatives: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """No error; there may be warnings."""
        return all(finding.level != "error" for finding in self.findings)


def check_dataset(folder: Path, *, progress: Progress | None = None) -> Check:
    """Look at every file of a YOLO folder, a site (train, val) or a partition (sites), and decode every image.

    Args:
        folder: what to check.
        progress: called with (done, total) images.

    Returns:
        Counts of the usable images, and all problems: folder by folder, by file name. What `read_yolo` would refuse is
        an error, and so is a file that differs from the manifest; metadata in an image and a cache left by ultralytics
        are warnings.

    Raises:
        DataError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("no such folder", where=folder)
    parts = _parts(folder)
    total, before = sum(map(_count, parts)), 0
    images = boxes = negatives = 0
    findings = list(_manifest(folder))
    for part in parts:
        findings += _caches(part)
        for item in scan_yolo(part, _later(progress, before, total)):
            found = [_error(item)] if isinstance(item, DataError) else list(_pixels(item.image))
            findings += found
            if isinstance(item, Sample) and all(finding.level != "error" for finding in found):
                images, boxes, negatives = images + 1, boxes + len(item.boxes), negatives + item.negative
        before += _count(part)
    return Check(images, boxes, negatives, tuple(findings))


def _parts(folder: Path) -> list[Path]:
    """YOLO folders in `folder`: itself, train and val, or those of every site."""
    if (folder / "images").is_dir() or (folder / "labels").is_dir():
        return [folder]
    if (folder / "train").is_dir() or (folder / "val").is_dir():
        return [folder / "train", folder / "val"]
    sites = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    parts = [[s] if s.name == HELD_OUT else [s / "train", s / "val"] for s in sites]
    return [part for site in parts for part in site] or [folder]


def _later(progress: Progress | None, before: int, total: int) -> Progress | None:
    return (lambda done, _: progress(min(before + done, total), total)) if progress else None


def _count(part: Path) -> int:
    return len(os.listdir(part / "images")) if (part / "images").is_dir() else 0


def _manifest(folder: Path) -> Iterator[Finding]:
    if not (folder / FILE).exists():
        return
    try:
        yield from map(_error, Manifest.read(folder).problems(folder))
    except DataError as fault:
        yield _error(fault)


def _caches(part: Path) -> Iterator[Finding]:
    for place in (part, part / "images", part / "labels"):
        for path in sorted(place.glob("*.cache")):
            problem = "a cache of ultralytics, which would run code from it; it is not read here"
            yield Finding("warning", str(path), problem, "Delete it unless this machine made it")


def _pixels(path: Path) -> Iterator[Finding]:
    try:
        file = read_image(path)
        decode(file, "RGB", path)
    except DataError as fault:
        yield _error(fault)
        return
    if not file.same:
        yield Finding(
            "warning", str(path), "carries metadata or is stored turned", "`partition` and `write_yolo` leave it out"
        )


def _error(fault: DataError) -> Finding:
    return Finding("error", fault.where, fault.problem, fault.remedy)
