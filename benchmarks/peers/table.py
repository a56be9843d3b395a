"""The comparison as a Markdown table: medians with ranges, ratios to polypfed within each repeat, goals beside them."""

import os
from statistics import median
from typing import Any

Row = dict[str, Any]
Key = tuple[str, int, str, str]  # model, clients, backend, configuration

TITLES = {"cnn": "CNN, 38 k", "small": "MLP, 9 k", "big": "MLP, 7.2 M, one step"}
COLUMNS = (
    "model | clients | engine | CPU ms per round | x ours | wall ms per round | x ours | start-up s | first round s | "
    "its CPU s | peak PSS MB | x ours | processes"
)
FORMS = {
    "cpu_ms": ".0f",
    "wall_ms": ".0f",
    "start_s": ".1f",
    "first_round_s": ".2f",
    "first_round_cpu_s": ".2f",
    "peak_pss_mb": ".0f",
}
GOALS = (
    # model, clients, engine, configuration, what, at least so many times ours
    ("cnn", 100, "flower", "default", "cpu_ms", 2.5),
    ("cnn", 100, "flower", "best", "cpu_ms", 2.5),
    ("big", 100, "flower", "default", "cpu_ms", 7.0),
    ("big", 100, "flower", "best", "cpu_ms", 7.0),
    ("cnn", 100, "pfl", "default", "cpu_ms", 1.0),
    ("big", 100, "pfl", "default", "cpu_ms", 1.0),
    ("cnn", 4, "nvflare", "default", "wall_ms", 40.0),
    ("cnn", 4, "nvflare", "best", "wall_ms", 8.0),
    ("cnn", 100, "flower", "best", "peak_pss_mb", 2.0),
    ("big", 100, "flower", "best", "peak_pss_mb", 2.0),
    ("cnn", 4, "nvflare", "best", "peak_pss_mb", 3.0),
)
FIRST_ROUND = 0.2  # seconds, polypfed, CNN


def busy(row: Row) -> bool:
    """Too many others were at work on the machine: a wall time says little, a CPU time is somewhat too large."""
    return max(row["load"]) > (os.cpu_count() or 1) + 1


def of(rows: list[Row], key: Key) -> dict[str, Row]:
    """By repeat."""
    return {r["repeat"]: r for r in rows if (r["model"], r["clients"], r["backend"], r["configuration"]) == key}


def times_ours(rows: list[Row], key: Key, what: str) -> list[float]:
    """One ratio per repeat."""
    ours = of(rows, (key[0], key[1], "polypfed", "default"))
    return [row[what] / ours[n][what] for n, row in of(rows, key).items() if n in ours]


def cell(values: list[float], form: str = ".2f") -> str:
    if not values:
        return "-"
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(rows: list[Row]) -> str:
    """All rows, losing ones too; the load beside them."""
    keys = list(dict.fromkeys((r["model"], r["clients"], r["backend"], r["configuration"]) for r in rows))
    lines = [f"| {COLUMNS} |", "|---" * (COLUMNS.count("|") + 1) + "|"]
    for key in sorted(keys, key=lambda k: (k[0], -k[1])):
        own = list(of(rows, key).values())
        found = {what: cell([r[what] for r in own if what in r], form) for what, form in FORMS.items()}
        ratio = {what: cell(times_ours(rows, key, what)) for what in ("cpu_ms", "wall_ms", "peak_pss_mb")}
        cells = [TITLES[key[0]], str(key[1]), f"{key[2]}, {key[3]}{' (busy)' if all(map(busy, own)) else ''}"]
        for what in FORMS:
            cells += [found[what], ratio[what]] if what in ratio else [found[what]]
        cells.append(str(max(r["processes"] for r in own)))
        lines.append(f"| {' | '.join(cells)} |")
    loads = [load for r in rows for load in r["load"]]
    lines += [
        "",
        f"Load {min(loads):.1f} to {max(loads):.1f}; {sum(map(busy, rows))} of {len(rows)} runs on a busy machine.",
        "",
    ]
    return "\n".join(lines + goals(rows))


def caption(rows: list[Row]) -> str:
    """When, where and with what."""
    last = rows[-1]
    versions = ", ".join(f"{k} {v}" for k, v in last["versions"].items())
    return f"{last['date'][:10]}, {last['cpu']}, one thread per process; {versions}."


def goals(rows: list[Row]) -> list[str]:
    """One line per goal that was measured."""
    lines = ["| goal | times ours | measured |  |", "|---|---|---|---|"]
    for model, clients, backend, configuration, what, least in GOALS:
        if found := times_ours(rows, (model, clients, backend, configuration), what):
            verdict = "met" if median(found) >= least else "MISSED"
            name = f"{TITLES[model]}, {clients} clients: {what} of {backend}, {configuration}"
            lines.append(f"| {name} | at least {least:g} | {cell(found)} | {verdict} |")
    if first := [r["first_round_s"] for r in of(rows, ("cnn", 100, "polypfed", "default")).values()]:
        verdict = "met" if median(first) < FIRST_ROUND else "MISSED"
        lines.append(f"| first round, s | below {FIRST_ROUND} | {cell(first, '.3f')} | {verdict} |")
    return lines


def missed(rows: list[Row]) -> list[str]:
    """Goals that were measured and not met."""
    return [line for line in goals(rows) if line.endswith("MISSED |")]
