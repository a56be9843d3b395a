import io
import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from polypfed.core.errors import DataError
from polypfed.report import HeatMap, LinePlot, write_plot
from polypfed.report.plots import spread, standalone

NS = "{http://www.w3.org/2000/svg}"
LINES = LinePlot("mAP50 by round", {"a<b": {0: 0.0, 1: 0.5, 2: 1.0}, "c": {2: 0.25}}, "mAP50", emphasis="c")
HEAT = HeatMap("matrix", ["r0", "r1"], ["c0", "c1"], {("r0", "c0"): 0.2, ("r1", "c1"): 0.8}, low=0.2, high=0.8)


def _strokes(plot: LinePlot) -> list[list[tuple[float, float]]]:
    root = ET.fromstring(standalone(plot.svg()))
    paths = [p.get("d", "") for p in root.iter(f"{NS}path") if p.get("class") == "stroke"]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", d)] for d in paths]


def test_points_stand_where_their_values_are() -> None:
    (first, second) = _strokes(LINES)
    (x0, y0), (x1, y1), (x2, y2) = first
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert y2 < y0, "more is higher up"
    assert second == [(x2, pytest.approx(0.75 * y0 + 0.25 * y2, abs=0.1))]


def test_the_title_is_there_for_those_who_do_not_see_it() -> None:
    for plot in (LINES, HEAT):
        root = ET.fromstring(standalone(plot.svg()))
        assert root.get("role") == "img"
        assert root.get("aria-label") == plot.title == root.findtext(f"{NS}title")


def test_each_value_is_named_in_a_tooltip() -> None:
    titles = [t.text for t in ET.fromstring(standalone(LINES.svg())).iter(f"{NS}title")]
    assert "a<b, round 1: 0.500" in titles
    assert "c, round 2: 0.250" in titles


def test_an_empty_series_and_an_empty_plot_are_drawn() -> None:
    assert [len(points) for points in _strokes(LinePlot("t", {"a": {}, "b": {3: 1.0}}, "y"))] == [1]
    ET.fromstring(standalone(LinePlot("t", {}, "y").svg()))


def test_a_higher_cell_is_filled_more_and_a_missing_one_not() -> None:
    root = ET.fromstring(standalone(HEAT.svg()))
    fills = [float(r.get("fill-opacity", "nan")) for r in root.iter(f"{NS}rect") if r.get("class") == "heat"]
    assert fills == [0.05, 1.0]
    assert sum(r.get("class") == "empty" for r in root.iter(f"{NS}rect")) == 2


@given(st.lists(st.floats(20, 260), max_size=12).map(sorted))
def test_labels_do_not_overlap(places: list[float]) -> None:
    moved = spread(places, gap=17, low=18, high=272)
    assert all(b - a >= 17 - 1e-9 for a, b in itertools.pairwise(moved))
    assert all(18 - 1e-9 <= m <= 272 for m in moved)


@pytest.mark.parametrize("plot", [LINES, HEAT], ids=["lines", "heat"])
def test_files(plot: LinePlot | HeatMap, tmp_path: Path) -> None:
    svg = write_plot(plot, tmp_path / "a.svg").read_bytes()
    assert svg == write_plot(plot, tmp_path / "b.svg").read_bytes()
    assert b"prefers-color-scheme: dark" in svg
    image = Image.open(io.BytesIO(write_plot(plot, tmp_path / "a.png").read_bytes()))
    assert image.width == 1280
    assert len(np.unique(np.asarray(image.convert("L")))) > 10, "something is drawn"
    with pytest.raises(DataError, match=r"'\.pdf'"):
        write_plot(plot, tmp_path / "a.pdf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "a.svg", "b.svg"]


def _places(svg: str, kind: str) -> list[tuple[float, float]]:
    (path,) = [p for p in ET.fromstring(svg).iter(f"{NS}path") if p.get("class") == kind]
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", path.get("d", ""))]


def test_a_band_runs_along_its_lows_and_back_along_its_highs() -> None:
    plot = LinePlot("t", {"a": {0: 0.5, 2: 0.5}}, "y", bands={"a": {0: (0.0, 1.0), 2: (0.25, 0.5)}}, low=0, high=1)
    low0, low2, high2, high0 = _places(standalone(plot.svg()), "band")
    (x0, middle), (x2, _) = _places(standalone(plot.svg()), "stroke")
    assert (low0[0], low2[0], high2[0], high0[0]) == (x0, x2, x2, x0)
    assert high2[1] == middle
    assert low0[1] - middle == pytest.approx(middle - high0[1], abs=0.11)
    assert low2[1] - middle == pytest.approx((low0[1] - middle) / 2, abs=0.11)


def test_bands_and_a_level_widen_the_axis_and_the_level_is_marked() -> None:
    plot = LinePlot("t", {"a": {0: 0.5, 1: 0.5}}, "y", bands={"a": {0: (0.2, 0.6)}}, level=0.9)
    assert plot.y_ticks()[0] <= 0.2
    assert plot.y_ticks()[-1] >= 0.9
    root = ET.fromstring(standalone(plot.svg()))
    (level,) = [e for e in root.iter(f"{NS}line") if e.get("class") == "level"]
    assert level.get("y1") == level.get("y2")
    assert float(level.get("y1", "nan")) < _places(standalone(plot.svg()), "stroke")[0][1], "0.9 is above 0.5"
