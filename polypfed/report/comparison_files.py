"""A comparison for readers: tables, plot, CSV and JSON lines."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

from polypfed.core.files import write_atomic
from polypfed.report.comparison import Goal, Line, Outcome, lines, results
from polypfed.report.plots import LinePlot, write_plot
from polypfed.report.scale import number, size


def table(found: Sequence[Line], goal: Goal) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table people read."""
    heads = ["strategy", f"rounds to {goal.target:g}", goal.title, "worst site", "CPU s", "up/round", "down/round"]
    return heads, [[line.strategy, *_cells(line)] for line in found]


def _cells(line: Line) -> list[str]:
    if not line.done:
        return [line.runs[0].status, *["–"] * 5]
    spread = "" if line.spread is None else f" ± {line.spread:.3f}"
    return [
        _rounds(line.rounds_to_target, line.done[0].rounds),
        number(line.mean(lambda r: r.final)) + spread,
        number(line.mean(lambda r: r.worst)),
        number(line.mean(lambda r: r.cpu_s), 0),
        size(line.mean(lambda r: r.bytes_up)),
        size(line.mean(lambda r: r.bytes_down)),
    ]


def site_table(found: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells: the final metric at each site."""
    sites = _sites(found)
    body = [[line.strategy, *(number(line.at(site)) for site in sites)] for line in found if line.done]
    return ["strategy", *sites], body


def plot(found: Sequence[Line], goal: Goal) -> LinePlot:
    """The metric by round, a line per strategy: mean over seeds, the band from the lowest to the highest."""
    by_line = {line.strategy: [r.by_round for r in line.done] for line in found if line.done}
    values = {
        name: {r: [p[r] for p in paths if r in p] for r in sorted({r for p in paths for r in p})}
        for name, paths in by_line.items()
    }
    seeds = max((len(paths) for paths in by_line.values()), default=1)
    several = f": mean and range of {seeds} seeds" if seeds > 1 else ""
    return LinePlot(
        f"{goal.title} by round and strategy{several}",
        {name: {r: fmean(v) for r, v in points.items()} for name, points in values.items()},
        f"{goal.title}{several}",
        bands={n: {r: (min(v), max(v)) for r, v in p.items()} for n, p in values.items() if len(by_line[n]) > 1},
        level=goal.target,
        low=0.0,
    )


def write_comparison(outcomes: Iterable[Outcome], goal: Goal, folder: Path) -> list[Line]:
    """Write comparison.jsonl (a line per run), .csv and .md (a line per strategy) and .svg, atomically."""
    each = results(outcomes, goal)
    found = lines(each)
    path = folder / "comparison.jsonl"
    write_atomic(path, "".join(json.dumps(asdict(r) | {"worst_site": r.worst}) + "\n" for r in each).encode())
    write_atomic(path.with_suffix(".csv"), csv_text(found).encode())
    write_atomic(path.with_suffix(".md"), markdown(found, goal).encode())
    write_plot(plot(found, goal), path.with_suffix(".svg"))
    return found


def csv_text(found: Sequence[Line]) -> str:
    """A line per strategy with plain numbers; what there is not is empty."""
    sites = _sites(found)
    rows = [_numbers(line) | {f"site {s}": line.at(s) for s in sites} for line in found]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else ["strategy"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _numbers(line: Line) -> dict[str, Any]:
    reached = [r for r in line.rounds_to_target if r < math.inf]
    middle = median(line.rounds_to_target) if line.done else math.inf
    final = [r.final for r in line.done if r.final is not None]
    return {
        "strategy": line.strategy,
        "runs": len(line.runs),
        "done": len(line.done),
        "reached_target": len(reached),
        "rounds_to_target_median": middle if middle < math.inf else None,
        "final_mean": fmean(final) if final else None,
        "final_sd": line.spread,
        "final_min": min(final, default=None),
        "final_max": max(final, default=None),
        "worst_site_mean": line.mean(lambda r: r.worst),
        "cpu_s_mean": line.mean(lambda r: r.cpu_s),
        "bytes_up_per_round": line.mean(lambda r: r.bytes_up),
        "bytes_down_per_round": line.mean(lambda r: r.bytes_down),
        "reason": "; ".join(line.reasons) or None,
    }


def markdown(found: Sequence[Line], goal: Goal) -> str:
    """Both tables, and what went wrong."""
    parts = [_marked(*table(found, goal)), f"{goal.title} by site after the last round:", _marked(*site_table(found))]
    notes = [f"- {reason}" for line in found for reason in line.reasons]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def _marked(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    ruled = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ruled, *body])


def _rounds(values: Sequence[float], asked: int) -> str:
    """The median with the range.

    >>> _rounds([4], 9), _rounds([3, 4, 6], 9), _rounds([5, math.inf], 9), _rounds([math.inf, math.inf], 9)
    ('4', '4 (3 to 6)', '> 9 (5 to > 9)', '> 9')
    """
    texts = [f"{v:g}" if v < math.inf else f"> {asked}" for v in (median(values), values[0], values[-1])]
    return texts[0] if values[0] == values[-1] else f"{texts[0]} ({texts[1]} to {texts[2]})"


def _sites(found: Sequence[Line]) -> list[str]:
    return sorted({site for line in found for r in line.done for site in r.sites})
