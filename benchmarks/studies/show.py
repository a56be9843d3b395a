"""Rows as a Markdown table and a plot, both written beside them."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from polypfed.core.files import write_atomic
from studies import details, draw
from studies.engine import Row, points
from studies.study import Study

MB = 1e6
_HEAD = "| cell | mAP50 | points to {} | mAP50-95 | P | R | {} | images used | MB up | MB down |"
_BYTES = " fewer a round | MB in all | fewer in all |"  # where bytes are the question


def write(study: Study, rows: Sequence[Row], folder: Path) -> str:
    """Write table.md and plot.svg; returns the table."""
    if not rows:
        return "no cell is done yet\n"
    text = table(study, rows)
    write_atomic(folder / "table.md", text.encode())
    write_atomic(folder / "plot.svg", draw.plot(study, by_cell(study, rows), caption(rows)))
    if figure := draw.details(study, by_cell(study, rows), caption(rows)):
        write_atomic(folder / "details.svg", figure)
    return text


def by_cell(study: Study, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each cell, seed by seed, in the study's order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["cell"], []).append(row)
    return found


def table(study: Study, rows: Sequence[Row]) -> str:
    """Means over seeds; differences in points of mAP50 are over the seeds that both cells have.

    MB up and down are those of one site in one round; "MB in all" is what a site sends and receives in the whole run.
    """
    cells = by_cell(study, rows)
    sites = sorted({s for row in rows for s in row["by_site"]})
    head = _HEAD.format(study.against, " | ".join(sites)) + (_BYTES if study.plot == "bytes" else "") + " CPU s |"
    lines = [f"# {study.name}: {study.question}", "", head, "|---|" + "---:|" * (head.count("|") - 2)]
    base = cells.get(study.against)
    for name, some in cells.items():
        line = _line(name, some, base, sites) + (_bytes(some, base) if study.plot == "bytes" else [])
        lines.append("| " + " | ".join([*line, f"{mean(r['cpu_s'] for r in some):.0f}"]) + " |")
    left = missing(study, rows)
    lines += [
        *details.tables(study, cells),
        "",
        caption(rows),
        *([f"Not run yet: {', '.join(left)}."] if left else []),
    ]
    return "\n".join(lines) + "\n"


def missing(study: Study, rows: Sequence[Row]) -> list[str]:
    """Cells that have no row yet."""
    done = {f"{r['cell']} (seed {r['seed']})" for r in rows}
    return sorted({f"{c.name} (seed {c.seed})" for c in study.cells} - done)


def short(study: Study, rows: Sequence[Row]) -> str:
    """Of each cell the score, the points, and what the question weighs them against: bytes or images."""
    cells = by_cell(study, rows)
    base, sized, chosen = cells.get(study.against), study.plot == "bytes", "easy" in study.details
    head = f"| cell | seeds | mAP50 | points to {study.against} |"
    head += " fewer bytes a round | fewer in all |" if sized else " images used | still found |" if chosen else ""
    lines = [head, "|---|" + "---:|" * (head.count("|") - 2)]
    for name, some in cells.items():
        apart = None if base is None else points(some, base)
        line = [name, str(len(some)), _score(some), "" if apart is None else f"{apart:+.1f}"]
        if sized:
            line += [*_bytes(some, base)[:1], *_bytes(some, base)[2:]]
        elif chosen:
            line += [f"{used(some):.0%}", details.still([r["easy"] for r in some if "easy" in r], "found", "images")]
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines) + "\n"


def used(some: Sequence[Row]) -> float:
    """Share of the images seen that were trained on."""
    return float(mean(r["kept"] for r in some) / mean(r["images"] for r in some))


def _score(some: Sequence[Row]) -> str:
    spread = f" ({min(r['map50'] for r in some):.3f} to {max(r['map50'] for r in some):.3f})" if len(some) > 1 else ""
    return f"**{score(some):.3f}**{spread}"


def _line(name: str, some: Sequence[Row], base: Sequence[Row] | None, sites: Sequence[str]) -> list[str]:
    def of(metric: str) -> float:
        return mean(r[metric] for r in some)

    apart = None if base is None else points(some, base)
    cells = [name, _score(some), "" if apart is None else f"{apart:+.1f}"]
    cells += [f"{of(m):.3f}" for m in ("map50_95", "precision", "recall")]
    cells += [
        f"{mean(r['by_site'][s] for r in some):.3f}" if all(s in r["by_site"] for r in some) else "" for s in sites
    ]
    share = "pooled" if some[0]["settings"]["pool"] else f"{used(some):.0%}"
    return [*cells, share, *[f"{each(some, b):.2f}" for b in ("bytes_up", "bytes_down")]]


def _bytes(some: Sequence[Row], base: Sequence[Row] | None) -> list[str]:
    """Both ways together: fewer in a round than the cell to compare with; in the whole run; fewer in the whole run."""
    fewer = ["", ""] if not base else [f"{saved(some, base):.1%}", f"{saved(some, base, whole=True):.1%}"]
    return [fewer[0], f"{in_all(some):.2f}", fewer[1]]


def saved(some: Sequence[Row], base: Sequence[Row], *, whole: bool = False) -> float:
    """Share of the bytes of `base` that are not sent, in a round or in the whole run."""
    ours, theirs = (in_all(r) if whole else each(r, "bytes_up") + each(r, "bytes_down") for r in (some, base))
    return 1 - ours / theirs


def in_all(some: Sequence[Row]) -> float:
    """MB that a site sends and receives in the whole run."""
    rounds = mean(r["settings"]["federation"]["rounds"] for r in some)
    return float(rounds * (each(some, "bytes_up") + each(some, "bytes_down")))


def score(some: Sequence[Row]) -> float:
    """Mean mAP50 over the seeds."""
    return mean(r["map50"] for r in some)


def each(some: Sequence[Row], direction: str) -> float:
    """MB of one site in one round."""
    return mean(r[direction] / len(r["by_site"]) for r in some) / MB


def caption(rows: Sequence[Row]) -> str:
    """How many seeds, when, where, and with what."""
    first, last = rows[0], max(rows, key=lambda r: str(r["date"]))
    settings: dict[str, Any] = first["settings"]
    seeds = len({r["seed"] for r in rows})
    loads = [v for r in rows for v in r["load"]]
    versions = ", ".join(f"{k} {v}" for k, v in last["versions"].items())
    work = f"{settings['federation']['rounds']} rounds of {settings['train']['epochs']} epochs"
    kvasir = ", Kvasir-SEG" if "kvasir_seg" in str(settings["data"]) else ""
    cpus, dates = sorted({r["cpu"] for r in rows}), sorted({str(r["date"]) for r in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (
        f"{settings['model']['arch']} at {settings['model']['image_size']} px, {work} unless the cell says otherwise; "
        f"{seeds} seed{'s' * (seeds > 1)}; {when}, {' and '.join(cpus)}, load {min(loads):.0f} to {max(loads):.0f}; "
        f"{versions}. Images: PolypGen (CC BY 4.0){kvasir}."
    )
