"""Sample images with true and predicted boxes: RUN/samples/samples.json and the image files beside it.

samples.json is a list of objects:

    {"site": "north", "image": "north-frame17.jpg",
     "true": [[x1, y1, x2, y2]], "pred": [[x1, y1, x2, y2, confidence]]}

"image" is a file beside it, boxes are in pixels of that file.
"""

import base64
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import DataError
from polypfed.data.images import open_image
from polypfed.report.html import Markup, el, join

_SHOWN = 270  # width on the page, pixels: strokes and letters are sized for it
_EMBEDDED = 600  # longest side of the JPEG in the page, pixels
_Boxes = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Picture:
    """One image of a site.

    Attributes:
        pixels: (h, w, 3) uint8 RGB.
        true: boxes as (x1, y1, x2, y2), pixels of this image.
        pred: boxes as (x1, y1, x2, y2, confidence), pixels of this image.
    """

    site: str
    name: str
    pixels: NDArray[np.uint8]
    true: _Boxes
    pred: _Boxes


def read_pictures(run: str | Path) -> tuple[Picture, ...]:
    """The pictures of a run; none if it has no samples.json.

    Raises:
        DataError: samples.json is malformed, names a file outside its folder, or an image cannot be read.
    """
    path = Path(run) / "samples" / "samples.json"
    if not path.is_file():
        return ()
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return tuple(_picture(path.parent, entry) for entry in entries)
    except DataError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OSError):
        raise DataError("this is not a list of samples", where=path, remedy="Delete it to report without") from None


def _picture(folder: Path, entry: dict[str, Any]) -> Picture:
    file = str(entry["image"])
    if Path(file).name != file or not (folder / file).resolve().is_relative_to(folder.resolve()):
        raise DataError(f"the image {file!r} is not in this folder", where=folder / "samples.json")
    site = str(entry["site"])
    return Picture(
        site=site,
        name=Path(file).stem.removeprefix(f"{site}-"),
        pixels=open_image(folder / file),
        true=_boxes(entry["true"], 4),
        pred=_boxes(entry["pred"], 5),
    )


def _boxes(rows: Any, width: int) -> _Boxes:
    boxes = tuple(tuple(float(v) for v in row) for row in rows)
    if any(len(box) != width or not all(map(math.isfinite, box)) for box in boxes):
        raise ValueError("boxes")
    return boxes


def figure(picture: Picture) -> Markup:
    """The picture as an inline SVG: true boxes solid, predicted ones dashed with their confidence."""
    height, width = picture.pixels.shape[:2]
    unit = width / _SHOWN
    parts = [el("image", href=_data_uri(picture.pixels), width=width, height=height)]
    parts += [_box(box, "true", unit) for box in picture.true]
    for box in picture.pred:
        parts += [_box(box, "pred", unit), _label(box, unit, width)]
    svg = el("svg", *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=_words(picture))
    return el("figure", svg, el("figcaption", el("b", picture.site), " ", picture.name, " – ", _short(picture)))


def _box(box: tuple[float, ...], kind: str, unit: float) -> Markup:
    place = {"x": box[0], "y": box[1], "width": max(box[2] - box[0], 0.0), "height": max(box[3] - box[1], 0.0)}
    dash = f"{6 * unit:.1f} {4 * unit:.1f}" if kind == "pred" else None
    halo = el("rect", **place, class_="halo", stroke_width=3.6 * unit)
    return join(halo, el("rect", **place, class_=f"box {kind}", stroke_width=2 * unit, stroke_dasharray=dash))


def _label(box: tuple[float, ...], unit: float, width: int) -> Markup:
    x, y = min(max(box[0], 0.0), width - 34 * unit), max(box[1] - 5 * unit, 13 * unit)
    ground = el("rect", x=x, y=y - 12 * unit, width=33 * unit, height=15 * unit, rx=3 * unit, class_="tag")
    return join(ground, el("text", f"{box[4]:.2f}", x=x + 4 * unit, y=y, class_="conf", font_size=12.5 * unit))


def _short(picture: Picture) -> str:
    return f"{_count(len(picture.true), 'polyp')}, {_count(len(picture.pred), 'detection')}"


def _words(picture: Picture) -> str:
    scores = ", ".join(f"{box[4]:.2f}" for box in picture.pred)
    return f"Image {picture.name} of {picture.site}: {_short(picture)}" + (
        f" with confidence {scores}" if scores else ""
    )


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    out = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((_EMBEDDED, _EMBEDDED))
    image.save(out, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
