import base64
import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from polypfed.report.pictures import Picture, figure

GREEN = np.full((100, 300, 3), (0, 200, 0), np.uint8)


def _svg(picture: Picture) -> ET.Element:
    found = ET.fromstring(figure(picture)).find("svg")
    assert found is not None
    return found


def test_boxes_stand_where_they_were_given() -> None:
    svg = _svg(Picture("s", "i", GREEN, ((10, 20, 60, 80),), ((15, 25, 65.5, 85, 0.875),)))
    assert svg.get("viewBox") == "0 0 300 100"
    boxes = {r.get("class"): r for r in svg.iter("rect")}
    keys = ("x", "y", "width", "height")
    assert [boxes["box true"].get(k) for k in keys] == ["10", "20", "50", "60"]
    assert [boxes["box pred"].get(k) for k in keys] == ["15", "25", "50.5", "60"]
    assert boxes["box true"].get("stroke-dasharray") is None
    assert boxes["box pred"].get("stroke-dasharray")
    assert [t.text for t in svg.iter("text")] == ["0.88"]


@pytest.mark.parametrize("size", [(40, 30), (900, 1600)])
def test_the_image_is_embedded_small_and_true_in_colour(size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), (200, 80, 60), np.uint8)
    image = _svg(Picture("s", "i", pixels, (), ())).find("image")
    assert image is not None
    assert (image.get("height"), image.get("width")) == (str(size[0]), str(size[1]))
    head, _, data = image.get("href", "").partition(",")
    assert head == "data:image/jpeg;base64"
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert max(shown.size) <= 600
    assert np.abs(np.asarray(shown).astype(int) - (200, 80, 60)).max() <= 4


def test_the_label_stays_within_the_image() -> None:
    svg = _svg(Picture("s", "i", GREEN, (), ((290, 0, 300, 10, 0.5),)))
    tag = next(r for r in svg.iter("rect") if r.get("class") == "tag")
    x, y, width = (float(tag.get(k, "nan")) for k in ("x", "y", "width"))
    assert x + width <= 300
    assert y >= 0
