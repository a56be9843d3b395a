"""The plots of a study, in the colours of Okabe and Ito, which the colour-blind can tell apart."""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from studies.engine import Row
from studies.study import Study

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_MARKS, _DASHES = "osD^vPX*", ("-", "--", ":")
Cells = Mapping[str, Sequence[Row]]


def plot(study: Study, cells: Cells, caption: str) -> bytes:
    """An SVG; the same rows give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"svg.hashsalt": study.name, "font.size": 9}):
        figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
        _KINDS[study.plot](axes, cells)
        axes.set_title("\n".join(textwrap.wrap(study.question, 90)), fontsize=9)
        axes.grid(alpha=0.3)
        figure.supxlabel("\n".join(textwrap.wrap(caption, 130)), fontsize=6)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        plt.close(figure)
    return out.getvalue()


def _style(number: int) -> dict[str, Any]:
    size = len(COLOURS)
    return {"color": COLOURS[number % size], "marker": _MARKS[number % size], "ls": _DASHES[number // size % 3]}


def _curves(axes: Any, cells: Cells) -> None:
    """mAP50 by epoch, so that runs of other rounds and local epochs share an axis; bands: the range of the seeds."""
    for number, (name, rows) in enumerate(cells.items()):
        epochs = int(rows[0]["settings"]["train"]["epochs"])
        curves = list(zip(*(r["curve"] for r in rows), strict=True))
        x = [epochs * i for i in range(len(curves))]
        axes.plot(x, [mean(c) for c in curves], label=name, ms=4, lw=1.4, **_style(number))
        if len(rows) > 1:
            low, high = [min(c) for c in curves], [max(c) for c in curves]
            axes.fill_between(x, low, high, color=COLOURS[number % len(COLOURS)], alpha=0.15)
    axes.set(xlabel="epochs over the training images", ylabel="mAP50, mean over sites by validation images")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)


def _bytes(axes: Any, cells: Cells) -> None:
    """mAP50 against what a site sends and receives in a round."""
    for number, (name, rows) in enumerate(cells.items()):
        both = mean((r["bytes_up"] + r["bytes_down"]) / len(r["by_site"]) for r in rows) / 1e6
        axes.plot([both], [mean(r["map50"] for r in rows)], label=name, ms=7, **(_style(number) | {"ls": ""}))
    axes.set(xscale="log", xlabel="MB up and down, per site and round (log)", ylabel="mAP50, mean over sites")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)


def _bars(axes: Any, cells: Cells) -> None:
    """mAP50 of each cell at each site."""
    sites = sorted({s for rows in cells.values() for r in rows for s in r["by_site"]})
    width = 0.8 / max(len(cells), 1)
    for number, (name, rows) in enumerate(cells.items()):
        heights = [mean(r["by_site"].get(s, 0.0) for r in rows) for s in sites]
        x = [i + (number - (len(cells) - 1) / 2) * width for i in range(len(sites))]
        axes.bar(x, heights, width, label=name, color=COLOURS[number % len(COLOURS)])
    axes.set(xticks=range(len(sites)), xticklabels=sites, xlabel="validation images of", ylabel="mAP50")
    axes.legend(fontsize=7)


_KINDS: dict[str, Callable[[Any, Cells], None]] = {"curves": _curves, "bytes": _bytes, "bars": _bars}
