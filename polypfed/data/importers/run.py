"""One pipeline for all importers: decode once, boxes from masks, metadata off, one YOLO folder out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import DataError
from polypfed.data.files import Progress, inside, new_folder, refuse_equal, safe_name
from polypfed.data.images import decode, encode, open_mask, read_image
from polypfed.data.importers.base import Contents, Importer, Item
from polypfed.data.labels import label_text
from polypfed.data.masks import MaskRules, mask_boxes
from polypfed.data.sample import Sample
from polypfed.data.yolo import put_image, write_sidecar

Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class ImportSummary:
    """What came in.

    `negatives` are images without a box; `specks` are those among them whose mask is not empty but holds nothing large
    enough. `dropped` counts specks and slivers in all, `covered` the boxes that a black rectangle touches. `skipped`
    lists (file name, reason).
    """

    dataset: str
    folder: Path
    images: int
    boxes: int
    negatives: int
    specks: int
    dropped: int
    covered: int
    skipped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.images} images", f"{self.boxes} boxes", f"{self.negatives} negatives"]
        parts += [f"{n} {what}" for n, what in ((self.specks, "with specks only"), (len(self.skipped), "skipped")) if n]
        return f"{self.dataset}: {', '.join(parts)}"


@dataclass(frozen=True)
class _Done:
    sample: Sample
    specks: int
    covered: int


@dataclass(frozen=True)
class Options:
    """What `import_dataset` passes on to each image."""

    rules: MaskRules
    blacken: tuple[Rectangle, ...]

    def __post_init__(self) -> None:
        for x1, y1, x2, y2 in self.blacken:
            if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
                raise DataError(
                    f"({x1}, {y1}, {x2}, {y2}) is not x1, y1, x2, y2 as shares of the image", where="blacken"
                )


def run(
    importer: Importer,
    root: Path,
    contents: Contents,
    dst: Path,
    options: Options,
    strict: bool,
    progress: Progress | None,
) -> ImportSummary:
    """Write all items to the YOLO folder `dst`; in strict mode the first problem ends it and nothing is written."""
    items = [_explained(item) for item in contents.items]
    broken = [item for item in items if item.problem and not item.excused]
    if strict and broken:
        problem = f"{broken[0].problem} ({len(broken)} such images)"
        raise DataError(problem, where=broken[0].image, remedy="Add what is missing, or skip such images (strict off)")
    refuse_equal((safe_name(item.image.stem) for item in items), root)
    done: list[_Done] = []
    skipped = [(item.image.name, item.problem) for item in items if item.problem]
    with new_folder(dst) as temporary:
        for name in ("images", "labels"):
            (temporary / name).mkdir()
        for number, item in enumerate(items, 1):
            try:
                done += [] if item.problem else [_convert(item, root, temporary, importer.name, options)]
            except DataError as fault:
                if strict:
                    raise
                skipped.append((item.image.name, str(fault)))
            if progress:
                progress(number, len(items))
        if not done:
            raise DataError("no usable image", where=root)
        write_sidecar([one.sample for one in done], temporary)
    return _summary(importer.name, dst, contents, done, skipped)


def _explained(item: Item) -> Item:
    lost = not item.problem and item.mask is None and item.boxes is None
    return replace(item, problem="neither mask nor boxes") if lost else item


def _convert(item: Item, root: Path, folder: Path, source: str, options: Options) -> _Done:
    file = read_image(inside(root, item.image))
    pixels = decode(file, "RGB", item.image)
    if file.kind == "TIFF" and (pixels[..., :1] == pixels).all():
        raise DataError("a grey image where colour is expected", where=item.image)
    boxes, specks = _boxes(item, root, file.size, options.rules)
    name = safe_name(item.image.stem)
    (folder / "labels" / f"{name}.txt").write_bytes(label_text(boxes, file.size, item.image).encode())
    target = folder / "images" / name
    if options.blacken:
        kind, suffix = ("JPEG", ".jpg") if file.kind == "JPEG" else ("PNG", ".png")
        target = target.with_name(name + suffix)
        target.write_bytes(encode(_painted(pixels, options.blacken), kind))
    else:
        target = put_image(file, item.image, target)
    about = {"centre": item.centre, "group": item.group, "modality": item.modality}
    sample = Sample(name, target, boxes, file.size, source=source, name=item.image.name, **about)
    return _Done(sample, specks, _covered(boxes, file.size, options.blacken))


def _boxes(item: Item, root: Path, size: tuple[int, int], rules: MaskRules) -> tuple[NDArray[np.float32], int]:
    if item.mask is None:
        assert item.boxes is not None
        boxes = np.clip(item.boxes, 0, [*size, *size]).astype(np.float32)
        return np.array(list(dict.fromkeys(map(tuple, boxes.tolist()))), np.float32).reshape(-1, 4), 0
    mask = open_mask(inside(root, item.mask))
    if mask.shape[::-1] != size:
        raise DataError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]}, its image {size[0]} x {size[1]}", where=item.mask
        )
    return mask_boxes(mask, rules)


def _corners(rectangle: Rectangle, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pixels that a rectangle touches, end exclusive."""
    (x1, y1, x2, y2), (w, h) = rectangle, size
    return int(x1 * w), int(y1 * h), int(np.ceil(x2 * w)), int(np.ceil(y2 * h))


def _painted(pixels: NDArray[np.uint8], rectangles: Sequence[Rectangle]) -> NDArray[np.uint8]:
    for rectangle in rectangles:
        x1, y1, x2, y2 = _corners(rectangle, (pixels.shape[1], pixels.shape[0]))
        pixels[y1:y2, x1:x2] = 0
    return pixels


def _covered(boxes: NDArray[np.float32], size: tuple[int, int], rectangles: Sequence[Rectangle]) -> int:
    hit = np.zeros(len(boxes), bool)
    for rectangle in rectangles:
        x1, y1, x2, y2 = _corners(rectangle, size)
        hit |= (boxes[:, 0] < x2) & (boxes[:, 2] > x1) & (boxes[:, 1] < y2) & (boxes[:, 3] > y1)
    return int(hit.sum())


def _summary(
    name: str, dst: Path, contents: Contents, done: list[_Done], skipped: list[tuple[str, str]]
) -> ImportSummary:
    samples, covered = [one.sample for one in done], sum(one.covered for one in done)
    warnings = list(contents.warnings)
    if covered:
        warnings.append(f"{covered} boxes are touched by what was painted black")
    return ImportSummary(
        dataset=name,
        folder=dst,
        images=len(samples),
        boxes=sum(len(sample.boxes) for sample in samples),
        negatives=sum(sample.negative for sample in samples),
        specks=sum(one.sample.negative and one.specks > 0 for one in done),
        dropped=sum(one.specks for one in done) + contents.slivers,
        covered=covered,
        skipped=tuple(sorted(skipped)),
        warnings=tuple(warnings),
    )
