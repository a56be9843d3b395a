"""The plots of a study, in the colours of Okabe and Ito, which the colour-blind can tell apart."""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from studies.engine import Row, points
from studies.study import Study

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_MARKS, _DASHES = "osD^vPX*", ("-", "--", ":")
_MANY = 10  # more curves than this cannot be told apart
Cells = Mapping[str, Sequence[Row]]


def plot(study: Study, cells: Cells, caption: str) -> bytes:
    """An SVG; the same rows give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"svg.hashsalt": study.name, "font.size": 9}):
        figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
        _KINDS[study.plot](axes, cells, study)
        axes.set_title("\n".join(textwrap.wrap(study.question, 90)), fontsize=9)
        axes.grid(alpha=0.3)
        figure.supxlabel("\n".join(textwrap.wrap(caption, 130)), fontsize=6)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        plt.close(figure)
    return out.getvalue()


def details(study: Study, cells: Cells, caption: str) -> bytes | None:
    """The second figure of a study, if it has one and the rows hold what it shows."""
    panels = [p for name in study.details for p in _PANELS[name]]
    some = {n: [r for r in rows if "by_round" in r] for n, rows in cells.items()}
    some = {name: rows for name, rows in some.items() if rows}
    if not panels or not some:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"svg.hashsalt": f"{study.name}-details", "font.size": 8}):
        tall = -(-len(panels) // 2)
        figure, grid = plt.subplots(tall, 2, figsize=(7.2, 2.6 * tall), layout="constrained", squeeze=False)
        order = {name: number for number, name in enumerate(cells)}
        for axes, (what, x, y, values) in zip(grid.flat, panels, strict=False):
            for name, rows in some.items():
                xs, ys = values(rows)
                axes.plot(xs, ys, label=name, **_style(order[name]) | {"ms": 3, "lw": 1})
            axes.set(title=what, xlabel=x, ylabel=y)
            axes.grid(alpha=0.3)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
        figure.suptitle("\n".join(textwrap.wrap(caption, 130)), fontsize=6)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        plt.close(figure)
    return out.getvalue()


def _average(rows: Sequence[Row], pick: Callable[[Row], Sequence[float]]) -> list[float]:
    return [mean(values) for values in zip(*map(pick, rows), strict=True)]


def _by_epoch(pick: Callable[[Row], Sequence[float]], first: int) -> Callable[[Sequence[Row]], Any]:
    """`pick` gives one value per round, from round `first`."""

    def values(rows: Sequence[Row]) -> tuple[list[int], list[float]]:
        found, epochs = _average(rows, pick), int(rows[0]["settings"]["train"]["epochs"])
        return [epochs * (first + i) for i in range(len(found))], found

    return values


def _by_level(name: str) -> Callable[[Sequence[Row]], Any]:
    return lambda rows: ([i / 20 for i in range(1, 20)], _average(rows, lambda r: r["levels"][name]))


def _share(rows: Sequence[Row]) -> Any:
    """Images with a polyp, by the confidence of the best detection in them."""
    counts = _average(rows, lambda r: r["histogram"]["polyp"])
    return [i / 10 + 0.05 for i in range(10)], [c / max(sum(counts), 1) for c in counts]


def _kept(row: Row) -> list[float]:
    return [k / max(n, 1) for k, n in zip(row["by_round"]["kept"], row["by_round"]["images"], strict=True)]


_EPOCHS, _SURENESS = "epochs", "confidence"
_PANELS: dict[str, list[tuple[str, str, str, Callable[[Sequence[Row]], Any]]]] = {
    "rounds": [
        ("images kept", _EPOCHS, "share of the training images", _by_epoch(_kept, 1)),
        (
            "confidence on validation images with a polyp",
            _EPOCHS,
            "mean of the best",
            _by_epoch(lambda r: r["confidence"], 0),
        ),
    ],
    "easy": [],
    "losses": [
        ("training loss", _EPOCHS, "per image, augmented", _by_epoch(lambda r: r["by_round"]["loss"], 1)),
        ("validation loss", _EPOCHS, "per image", _by_epoch(lambda r: r["val_loss"], 0)),
    ],
    "levels": [
        ("precision", _SURENESS, "", _by_level("precision")),
        ("recall", _SURENESS, "", _by_level("recall")),
        ("F1", _SURENESS, "", _by_level("f1")),
        ("images with a polyp, by best confidence", _SURENESS, "share", _share),
    ],
}


def _style(number: int) -> dict[str, Any]:
    """Colour and marker, empty the second time round."""
    size = len(COLOURS)
    empty = {"mfc": "white"} if number // size % 2 else {}
    return {"color": COLOURS[number % size], "marker": _MARKS[number % size], "ls": _DASHES[number // size % 3]} | empty


def _curves(axes: Any, cells: Cells, study: Study) -> None:
    """mAP50 by epoch, so that runs of other rounds and local epochs share an axis; bands: the range of the seeds.

    Of many cells those with the most seeds are told apart; the others are there in grey.
    """
    most = max(map(len, cells.values()))
    told = [n for n, rows in cells.items() if len(cells) <= _MANY or len(rows) == most or n == study.against]
    for name, rows in sorted(cells.items(), key=lambda item: item[0] in told):
        epochs = int(rows[0]["settings"]["train"]["epochs"]) * mean(map(_seen, rows))
        curves = list(zip(*(r["curve"] for r in rows), strict=True))
        x, y = [epochs * i for i in range(len(curves))], [mean(c) for c in curves]
        if name not in told:
            axes.plot(x, y, color="#BBBBBB", lw=0.8)
            continue
        number = told.index(name)
        axes.plot(x, y, label=name, ms=4, lw=1.4, **_style(number))
        if len(rows) > 1:
            low, high = [min(c) for c in curves], [max(c) for c in curves]
            axes.fill_between(x, low, high, color=COLOURS[number % len(COLOURS)], alpha=0.15)
    if len(told) < len(cells):
        axes.plot([], [], color="#BBBBBB", lw=0.8, label="others, in the table")
    axes.set(xlabel="epochs over the training images", ylabel="mAP50, mean over sites by validation images")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)


def _seen(row: Row) -> float:
    """The share of the training images that an epoch goes over."""
    return 1.0 if row["settings"]["pool"] else row["kept"] / max(row["images"], 1)


def _bytes(axes: Any, cells: Cells, study: Study) -> None:
    """Points to the base, over the seeds that both have, against what a site sends and receives in the whole run."""
    base = cells.get(study.against, [])
    for number, (name, rows) in enumerate(cells.items()):
        if (apart := points(rows, base)) is None:
            continue
        rounds = rows[0]["settings"]["federation"]["rounds"]
        both = mean(rounds * (r["bytes_up"] + r["bytes_down"]) / len(r["by_site"]) for r in rows) / 1e6
        axes.plot([both], [apart], label=name, ms=7, **(_style(number) | {"ls": ""}))
    axes.axhline(-study.points, color="#7F7F7F", lw=1, ls="--", label=f"{study.against} less {study.points:g}")
    axes.set(xscale="log", xlabel="MB up and down, per site, in the whole run (log)")
    axes.set(ylabel=f"points of mAP50 to {study.against}")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)


def _bars(axes: Any, cells: Cells, study: Study) -> None:
    """mAP50 of each cell at each site."""
    sites = sorted({s for rows in cells.values() for r in rows for s in r["by_site"]})
    width = 0.8 / max(len(cells), 1)
    for number, (name, rows) in enumerate(cells.items()):
        heights = [mean(r["by_site"].get(s, 0.0) for r in rows) for s in sites]
        x = [i + (number - (len(cells) - 1) / 2) * width for i in range(len(sites))]
        axes.bar(x, heights, width, label=name, color=COLOURS[number % len(COLOURS)])
    axes.set(xticks=range(len(sites)), xticklabels=sites, xlabel="validation images of", ylabel="mAP50")
    axes.legend(fontsize=7)


_KINDS: dict[str, Callable[[Any, Cells, Study], None]] = {"curves": _curves, "bytes": _bytes, "bars": _bars}
