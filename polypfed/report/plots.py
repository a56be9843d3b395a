"""Line plots and heat maps as SVG, written by hand: no dependency, the same bytes every time.

In a page the colours come from its CSS and follow the reader's light or dark scheme; `write_plot` makes a file that
stands alone (SVG), or a PNG (needs the extra `report`). Lines differ in colour, marker and dash, so they can be told
apart without colour.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from polypfed.core.errors import DataError
from polypfed.core.files import write_atomic
from polypfed.report.html import Markup, el, join, raw
from polypfed.report.scale import number, ticks, whole_ticks

COLOURS = 6  # of page.css; markers and dashes vary beyond them
_MANY = 12  # more lines than this are drawn in one quiet grey
_MARKERS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",
    "M-3.6,-3.6h7.2v7.2h-7.2z",
    "M0,-4.8L4.6,3.6H-4.6z",
    "M0,-5L5,0L0,5L-5,0z",
)
_MOST_MARKS = 24  # a line with more points than this has no marker at each
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 280, 56, 118, 12, 44


@dataclass(frozen=True)
class LinePlot:
    """Lines over rounds (or any other whole numbers).

    Attributes:
        title: what it shows, for those who do not see it.
        series: name -> {x: y}; the order gives colour and marker.
        y_label, x_label: of the axes.
        emphasis: the name of the series that is drawn thick and in the colour of the text.
        bands: name of a series -> {x: (low, high)}: a shaded range around its line.
        level: a value that is marked by a dashed line across the plot, such as a target.
        low, high: the least range of the y axis.
        write: how a value is written.
    """

    title: str
    series: Mapping[str, Mapping[int, float]]
    y_label: str
    x_label: str = "round"
    emphasis: str = ""
    bands: Mapping[str, Mapping[int, tuple[float, float]]] = field(default_factory=dict)
    level: float | None = None
    low: float | None = None
    high: float | None = None
    write: Callable[[float], str] = number

    def svg(self) -> Markup:
        """Inline SVG whose colours are those of the surrounding page."""
        return _svg(self.title, _WIDTH, _HEIGHT, _Lines(self).draw())

    @property
    def lines(self) -> dict[str, Mapping[int, float]]:
        """The series that have a point."""
        return {name: points for name, points in self.series.items() if points}

    def y_ticks(self) -> list[float]:
        """Round values that cover all points and the range asked for."""
        values = [v for points in self.series.values() for v in points.values()]
        values += [v for band in self.bands.values() for pair in band.values() for v in pair]
        values += [v for v in (self.low, self.high, self.level) if v is not None]
        return ticks(min(values, default=0.0), max(values, default=1.0))


@dataclass(frozen=True)
class HeatMap:
    """A matrix of values in [low, high]; a darker cell (in the dark scheme: a lighter one) is a higher value.

    Attributes:
        values: (row, column) -> value; a missing one stays empty.
        framed: (row, column) of cells to frame.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Mapping[tuple[str, str], float]
    row_label: str = ""
    column_label: str = ""
    framed: frozenset[tuple[str, str]] = frozenset()
    low: float = 0.0
    high: float = 1.0
    write: Callable[[float], str] = number

    def svg(self) -> Markup:
        """Inline SVG whose colours are those of the surrounding page."""
        width = 170 + 84 * len(self.columns) + 10
        height = 56 + 38 * len(self.rows) + 4
        return _svg(self.title, width, height, *self._heads(), *self._cells(), cap=width)

    def share(self, value: float) -> float:
        """Where a value stands between `low` (0) and `high` (1)."""
        return min(max((value - self.low) / ((self.high - self.low) or 1.0), 0.0), 1.0)

    def _heads(self) -> list[Markup]:
        middle = 170 + 42 * len(self.columns)
        heads = [el("text", self.column_label, x=middle, y=16, class_="axis mid")]
        heads += [el("text", self.row_label, x=160, y=42, class_="axis end")]
        heads += [_name(c, 170 + 84 * i + 42, 42, "mid", 11) for i, c in enumerate(self.columns)]
        return heads + [_name(r, 160, 56 + 38 * i + 24, "end", 20) for i, r in enumerate(self.rows)]

    def _cells(self) -> list[Markup]:
        cells = []
        for i, row in enumerate(self.rows):
            for j, column in enumerate(self.columns):
                value = self.values.get((row, column))
                cells.append(self._cell(170 + 84 * j, 56 + 38 * i, row, column, value))
        return cells

    def _cell(self, x: int, y: int, row: str, column: str, value: float | None) -> Markup:
        box = {"x": x + 1, "y": y + 1, "width": 82, "height": 36, "rx": 3}
        if value is None:
            return el("rect", **box, class_="empty")
        share = self.share(value)
        parts = [el("title", f"{row} on {column}: {self.write(value)}")]
        parts += [el("rect", **box, class_="heat", fill_opacity=0.05 + 0.95 * share)]
        if (row, column) in self.framed:
            parts += [el("rect", x=x + 2.5, y=y + 2.5, width=79, height=33, rx=3, class_="frame")]
        on = "on" if share > 0.5 else "off"
        return el("g", *parts, el("text", self.write(value), x=x + 42, y=y + 24, class_=f"mid cell {on}"))


Plot = LinePlot | HeatMap


def write_plot(plot: Plot, path: str | Path) -> Path:
    """Write `plot` as .svg (stands alone, light and dark) or .png (light), atomically.

    Raises:
        DataError: another suffix.
        MissingExtraError: a PNG without matplotlib.
    """
    path = Path(path)
    if path.suffix == ".svg":
        write_atomic(path, standalone(plot.svg()).encode())
    elif path.suffix == ".png":
        from polypfed.report.raster import png

        write_atomic(path, png(plot))
    else:
        raise DataError(f"plots are written as .svg or .png, not {path.suffix!r}", where=path)
    return path


def stylesheet() -> str:
    """The page's CSS, which the inline SVGs need."""
    return files("polypfed.report").joinpath("page.css").read_text(encoding="utf-8")


def standalone(svg: Markup) -> Markup:
    """An SVG document of its own: name space, colours and ground included."""
    style = el("style", raw(stylesheet().replace("<", "").replace("&", "")))
    ground = raw('<rect width="100%" height="100%" fill="var(--ground)"></rect>')
    head, _, body = svg.partition(">")
    return join(raw(head + ' xmlns="http://www.w3.org/2000/svg">'), style, ground, raw(body))


class _Lines:
    """The geometry of one line plot."""

    def __init__(self, plot: LinePlot) -> None:
        self.plot = plot
        xs = [x for points in plot.lines.values() for x in points]
        self.x_ticks, self.y_ticks = whole_ticks(xs), plot.y_ticks()
        self.x_range = (min(xs, default=0), max(xs, default=1))

    def x(self, value: float) -> float:
        low, high = self.x_range
        share = (value - low) / (high - low) if high > low else 0.5
        return _LEFT + 8 + share * (_WIDTH - _LEFT - _RIGHT - 16)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def draw(self) -> Markup:
        order = sorted(enumerate(self.plot.lines.items()), key=lambda item: item[1][0] == self.plot.emphasis)
        bands = [self._band(i, name, self.plot.bands[name]) for i, (name, _) in order if name in self.plot.bands]
        lines = [self._line(i, name, points) for i, (name, points) in order]
        return join(*self._axes(), *bands, *self._level(), *lines, *self._labels())

    def _band(self, index: int, name: str, band: Mapping[int, tuple[float, float]]) -> Markup:
        """From left to right along the lows and back along the highs."""
        xs = sorted(band)
        places = [(x, band[x][0]) for x in xs] + [(x, band[x][1]) for x in reversed(xs)]
        path = "M" + "L".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in places) + "Z"
        return el("g", el("path", d=path, class_="band"), class_=self._class(index, name))

    def _level(self) -> list[Markup]:
        if self.plot.level is None:
            return []
        y = self.y(self.plot.level)
        return [el("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="level")]

    def _axes(self) -> list[Markup]:
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        parts = []
        for value in self.y_ticks:
            y = self.y(value)
            parts += [el("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid")]
            parts += [el("text", f"{value:g}", x=_LEFT - 8, y=y + 4, class_="end tick")]
        parts += [el("text", v, x=self.x(v), y=bottom + 18, class_="mid tick") for v in self.x_ticks]
        parts += [el("text", self.plot.x_label, x=(_LEFT + right) / 2, y=_HEIGHT - 6, class_="mid axis")]
        turn = f"translate(14 {(_TOP + bottom) / 2:g}) rotate(-90)"
        return [*parts, el("text", self.plot.y_label, transform=turn, class_="mid axis")]

    def _class(self, index: int, name: str) -> str:
        if name == self.plot.emphasis:
            return "line main"
        if len(self.plot.lines) > _MANY:
            return "line many"
        return f"line c{index % COLOURS}" + (" dashed" if index // COLOURS % 2 else "")

    def _line(self, index: int, name: str, points: Mapping[int, float]) -> Markup:
        places = [(self.x(x), self.y(y), x, y) for x, y in sorted(points.items())]
        path = "M" + "L".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in places)
        shape = _MARKERS[index % len(_MARKERS)]
        marks = [
            el(
                "path",
                el("title", f"{name}, {self.plot.x_label} {x}: {self.plot.write(y)}"),
                d=shape,
                transform=f"translate({px:.1f} {py:.1f})",
                class_="mark",
            )
            for px, py, x, y in (places if len(places) <= _MOST_MARKS else places[-1:])
        ]
        return el("g", el("path", d=path, class_="stroke"), *marks, class_=self._class(index, name))

    def _labels(self) -> list[Markup]:
        """Each line's name at its end, pushed apart where they would overlap."""
        ends = [
            (self.y(points[max(points)]), index, name) for index, (name, points) in enumerate(self.plot.lines.items())
        ]
        if len(ends) > _MANY:
            ends = [end for end in ends if end[2] == self.plot.emphasis]
        x, labels = _WIDTH - _RIGHT + 20, []
        for y, (_, index, name) in zip(spread([e[0] for e in sorted(ends)]), sorted(ends), strict=True):
            mark = el(
                "path", d=_MARKERS[index % len(_MARKERS)], transform=f"translate({x - 10} {y:.1f})", class_="mark"
            )
            labels.append(el("g", mark, _name(name, x, y + 4, "label", 14), class_=self._class(index, name)))
        return labels


def spread(places: Sequence[float], gap: float = 17.0, low: float = _TOP + 6, high: float = _HEIGHT - 8) -> list[float]:
    """Sorted places moved apart to at least `gap`, within [low, high] if there is room.

    >>> spread([50, 51, 120], gap=10)
    [50, 60, 120]
    >>> spread([280, 290], gap=10, high=290)
    [280, 290]
    """
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(place, low))
    limit = high
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


def _svg(title: str, width: int, height: int, *children: object, cap: int | None = None) -> Markup:
    style = None if cap is None else f"min-width:{0.7 * cap:.0f}px;max-width:{cap}px"
    return el(
        "svg", el("title", title), *children, viewBox=f"0 0 {width} {height}", role="img", aria_label=title,
        class_="plot", style=style,
    )  # fmt: skip


def _name(text: str, x: float, y: float, class_: str, most: int) -> Markup:
    half = most // 2  # names of sites often differ at the end only
    short = text if len(text) <= most else f"{text[: most - half - 1]}…{text[-half:]}"
    return el("text", el("title", text) if short != text else "", short, x=x, y=y, class_=class_)
