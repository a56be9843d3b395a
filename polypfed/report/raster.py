"""Plots as PNG, by matplotlib: for documents that cannot hold an SVG."""

import io
from typing import Any

from polypfed.core.extras import require
from polypfed.report.plots import HeatMap, LinePlot, Plot

_COLOURS = ("#0067a5", "#c44e00", "#007a5a", "#9b3f87", "#8a6700", "#5457c9")  # page.css, light scheme
_MARKERS = ("o", "s", "^", "D")
_INK = "#1a2027"


def png(plot: Plot) -> bytes:
    """The plot as a PNG of 1280 pixels width, on white.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", extra="report")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (6.4, 3.2) if isinstance(plot, LinePlot) else (6.4, 1.0 + 0.4 * len(plot.rows))
    figure = Figure(figsize=size, dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if isinstance(plot, LinePlot):
        _lines(axes, plot)
    else:
        _matrix(axes, plot)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _lines(axes: Any, plot: LinePlot) -> None:
    for index, (name, points) in enumerate(plot.lines.items()):
        main = name == plot.emphasis
        colour = _INK if main else _COLOURS[index % len(_COLOURS)]
        if band := sorted(plot.bands.get(name, {}).items()):
            lows, highs = zip(*(pair for _, pair in band), strict=True)
            axes.fill_between([x for x, _ in band], lows, highs, color=colour, alpha=0.13, linewidth=0)
        axes.plot(
            *zip(*sorted(points.items()), strict=True),
            label=name,
            color=colour,
            linestyle="--" if not main and index // len(_COLOURS) % 2 else "-",
            linewidth=2.4 if main else 1.4,
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4,
            zorder=3 if main else 2,
        )
    if plot.level is not None:
        axes.axhline(plot.level, color="#55606c", linewidth=0.9, linestyle=":")
    axes.set(xlabel=plot.x_label, ylabel=plot.y_label, yticks=plot.y_ticks())
    axes.grid(axis="y", color="#dde2e7", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _matrix(axes: Any, plot: HeatMap) -> None:
    values = [[plot.values.get((r, c), float("nan")) for c in plot.columns] for r in plot.rows]
    axes.imshow(values, cmap="Blues", vmin=plot.low, vmax=plot.high, aspect="auto")
    axes.set_xticks(range(len(plot.columns)), plot.columns)
    axes.set_yticks(range(len(plot.rows)), plot.rows)
    axes.set(xlabel=plot.column_label, ylabel=plot.row_label)
    for (row, column), value in plot.values.items():
        place = plot.columns.index(column), plot.rows.index(row)
        colour = "white" if plot.share(value) > 0.55 else _INK
        axes.text(*place, plot.write(value), ha="center", va="center", color=colour, fontsize=8)
