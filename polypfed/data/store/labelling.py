"""Hard frames to a clinician's tool and the answers back: COCO, YOLO, Label Studio.

What a model guessed travels apart from the labels, so that a guess cannot come back as an answer. Images leave the
store unencrypted by this: the folder is the clinician's, and is to be removed once the answers are in.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from polypfed.core.errors import ConfigError, DataError
from polypfed.core.files import write_atomic
from polypfed.data.files import new_folder
from polypfed.data.sample import Boxes
from polypfed.data.store.store import Record, SampleStore

Format = Literal["coco", "yolo", "label-studio"]
FORMATS: tuple[Format, ...] = get_args(Format)
Empty = Literal["skip", "negative"]
_LIMIT = 200_000_000
_NAME = "polyp"
Guesses = Mapping[str, Boxes]


def export_labels(
    store: SampleStore,
    folder: Path,
    format: Format,
    records: Sequence[Record] | None = None,
    guesses: Guesses | None = None,
) -> int:
    """Write frames without a label into a new folder, and mark them as exported.

    Args:
        records: which; by default all that have no human label.
        guesses: boxes by id that a model found, (n, 4) xyxy pixels, to start from.

    Returns:
        How many.

    Raises:
        ConfigError: unknown format. DataError: the folder is not empty, or there is nothing to label.
    """
    _check(format)
    chosen = store.records("none", "exported", "pseudo") if records is None else list(records)
    if not chosen:
        raise DataError("there is nothing to label", where=store.folder)
    with new_folder(folder) as made:
        (made / "images").mkdir()
        for record in chosen:
            (made / "images" / f"{record.id}.png").write_bytes(store.png(record.id))
        _WRITERS[format](made, chosen, guesses or {})
    store.exported([r.id for r in chosen])
    return len(chosen)


def import_labels(store: SampleStore, path: Path, format: Format, by: str, empty: Empty = "skip") -> dict[str, int]:
    """Read a clinician's answers. All of them are checked before the first is stored.

    Args:
        path: the COCO or Label Studio file, or the YOLO folder with `labels/`.
        by: the person, for the record.
        empty: what an image without boxes means in COCO and YOLO, whose tools list images nobody looked at too:
            "skip" leaves it unlabelled, "negative" takes it as free of polyps. Label Studio says which is which.

    Returns:
        Counts: labelled, boxes, skipped, unknown (frames the store no longer has).

    Raises:
        ConfigError: unknown format. DataError: not such a file, or a box that makes no sense; names the frame.
    """
    _check(format)
    known = {r.id: r for r in store.records()}
    counts = {"labelled": 0, "boxes": 0, "skipped": 0, "unknown": 0}
    accepted: list[tuple[str, Boxes]] = []
    for frame, boxes in _READERS[format](path, known):
        if frame not in known:
            counts["unknown"] += 1
        elif boxes is None or (not len(boxes) and empty == "skip" and format != "label-studio"):
            counts["skipped"] += 1
        else:
            size = np.array(known[frame].size * 2, np.float32)
            if not np.isfinite(boxes).all() or (boxes < -1).any() or (boxes > size + 1).any():
                raise DataError("a box lies outside the frame", where=f"{path}: {frame}")
            accepted.append((frame, boxes.clip(0, size)))
    for frame, boxes in accepted:
        store.label(frame, boxes, by)
        counts["labelled"] += 1
        counts["boxes"] += len(boxes)
    return counts


def _check(format: str) -> None:
    if format not in FORMATS:
        raise ConfigError(f"{format!r} is not a format", where="format", remedy=f"Use one of {', '.join(FORMATS)}")


def _write_coco(folder: Path, records: Sequence[Record], guesses: Guesses) -> None:
    images = [
        {"id": i, "file_name": f"{r.id}.png", "width": r.size[0], "height": r.size[1]} for i, r in enumerate(records, 1)
    ]
    about = {"images": images, "annotations": [], "categories": [{"id": 1, "name": _NAME}]}
    _dump(folder / "annotations.json", about)
    found = [
        {"image_id": i, "category_id": 1, "bbox": [float(v) for v in (*b[:2], *(b[2:] - b[:2]))], "score": 1.0}
        for i, r in enumerate(records, 1)
        for b in guesses.get(r.id, ())
    ]
    if found:
        _dump(folder / "guesses.json", found)


def _write_yolo(folder: Path, records: Sequence[Record], guesses: Guesses) -> None:
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_text(f"{_NAME}\n")
    if guesses:
        (folder / "guesses").mkdir()
    for record in records:
        if record.id in guesses:
            scale = np.array(record.size * 2, np.float64)
            lines = []
            for x1, y1, x2, y2 in np.asarray(guesses[record.id], np.float64) / scale:
                lines.append(f"0 {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n")
            (folder / "guesses" / f"{record.id}.txt").write_text("".join(lines))


def _write_studio(folder: Path, records: Sequence[Record], guesses: Guesses) -> None:
    tasks = []
    for record in records:
        url = f"/data/local-files/?d=images/{record.id}.png"
        task: dict[str, Any] = {"data": {"image": url, "frame": record.id, "confidence": record.confidence}}
        if record.id in guesses:
            result = [_rectangle(b, record.size) for b in guesses[record.id]]
            task["predictions"] = [{"model_version": record.model, "result": result}]
        tasks.append(task)
    _dump(folder / "tasks.json", tasks)
    view = (
        f'<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
        f'<Label value="{_NAME}"/></RectangleLabels></View>\n'
    )
    (folder / "config.xml").write_text(view)


def _rectangle(box: Any, size: tuple[int, int]) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(v) for v in box)
    value = {"x": 100 * x1 / size[0], "y": 100 * y1 / size[1], "rotation": 0, "rectanglelabels": [_NAME]}
    value |= {"width": 100 * (x2 - x1) / size[0], "height": 100 * (y2 - y1) / size[1]}
    names = {"from_name": "label", "to_name": "image", "type": "rectanglelabels"}
    return {**names, "original_width": size[0], "original_height": size[1], "value": value}


def _read_coco(path: Path, _: Mapping[str, Record]) -> Iterator[tuple[str, Boxes | None]]:
    about = _load(path)
    try:
        names = {i["id"]: Path(str(i["file_name"])).stem for i in about["images"]}
        boxes: dict[Any, list[list[float]]] = {i: [] for i in names}
        for annotation in about["annotations"]:
            x, y, w, h = (float(v) for v in annotation["bbox"])
            boxes[annotation["image_id"]].append([x, y, x + w, y + h])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"is not a COCO file ({error!r})", where=path) from None
    for number, name in names.items():
        yield name, _array(boxes[number], path, name)


def _read_yolo(path: Path, known: Mapping[str, Record]) -> Iterator[tuple[str, Boxes | None]]:
    files = sorted((path / "labels").glob("*.txt"))
    if not files:
        raise DataError("holds no labels/*.txt", where=path)
    for file in files:
        if file.name == "classes.txt":
            continue
        size = known[file.stem].size if file.stem in known else (1, 1)
        rows = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                _, x, y, w, h = (float(v) for v in line.split())
            except ValueError:
                raise DataError(f"line {number} is not `class x y width height`", where=file) from None
            rows.append([(x - w / 2) * size[0], (y - h / 2) * size[1], (x + w / 2) * size[0], (y + h / 2) * size[1]])
        yield file.stem, _array(rows, file, file.stem)


def _read_studio(path: Path, known: Mapping[str, Record]) -> Iterator[tuple[str, Boxes | None]]:
    tasks = _load(path)
    try:
        for task in tasks:
            frame = str(task["data"].get("frame") or Path(str(task["data"]["image"])).stem)
            answers = [a for a in task.get("annotations", []) if not a.get("was_cancelled")]
            if not answers:
                yield frame, None
                continue
            size = known[frame].size if frame in known else (1, 1)
            values = [r["value"] for r in answers[-1]["result"] if r.get("type") == "rectanglelabels"]
            rows = [_pixels(value, size, f"{path}: {frame}") for value in values]
            yield frame, _array(rows, path, frame)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"is not a Label Studio export ({error!r})", where=path) from None


def _pixels(value: Mapping[str, Any], size: tuple[int, int], where: str) -> list[float]:
    if value.get("rotation"):
        raise DataError("a rotated rectangle is no box", where=where, remedy="Draw it upright")
    x, y, w, h = (float(value[k]) / 100 for k in ("x", "y", "width", "height"))
    return [x * size[0], y * size[1], (x + w) * size[0], (y + h) * size[1]]


def _array(rows: list[list[float]], path: Path, name: str) -> Boxes:
    for row in rows:
        if not all(map(math.isfinite, row)) or row[2] <= row[0] or row[3] <= row[1]:
            raise DataError("a box is empty or not finite", where=f"{path}: {name}")
    return np.array(rows, np.float32).reshape(-1, 4)


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > _LIMIT:
            raise DataError(f"is larger than {_LIMIT} bytes", where=path)
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot be read ({error})", where=path) from None


def _dump(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1).encode())


_WRITERS: dict[str, Callable[[Path, Sequence[Record], Guesses], None]] = {
    "coco": _write_coco,
    "yolo": _write_yolo,
    "label-studio": _write_studio,
}
_READERS: dict[str, Callable[[Path, Mapping[str, Record]], Iterator[tuple[str, Boxes | None]]]] = {
    "coco": _read_coco,
    "yolo": _read_yolo,
    "label-studio": _read_studio,
}
