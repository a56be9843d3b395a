"""The figures of a report, as numbers: no HTML here."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from polypfed.privacy.pipeline import Mode, mode_of
from polypfed.report.plots import HeatMap
from polypfed.report.read import BASELINE, Run
from polypfed.report.scale import duration, number, percent, signed, size

GLOBAL, ALL, MEAN = "global model", "all sites", "mean of sites"
COMPLETED, SECOND = "shared part in each site's own layers", "each site's own model"


@dataclass(frozen=True)
class Tile:
    """One headline figure: what it is, the figure, and what puts it into proportion."""

    label: str
    big: str
    small: str = ""


@dataclass(frozen=True)
class Compared:
    """A model of the comparison: its value at each site, and over all of them (`weighted` by images, or plain mean)."""

    name: str
    sites: Mapping[str, float]
    overall: float
    weighted: bool


def strategies(run: Run) -> list[str]:
    """The names of the run's strategy and of those inside it, from outside in."""
    settings, found = run.facts.get("settings"), []
    now = settings.get("strategy") if isinstance(settings, Mapping) else None
    while isinstance(now, Mapping):
        found.append(str(now.get("name", "")))
        now = now.get("inner")
    return found


def federated(run: Run) -> str:
    """What the federation's model is called: under FedBN and FedPer there is no one global model."""
    return COMPLETED if {"fedbn", "fedper"} & set(strategies(run)) else GLOBAL


def privacy_mode(run: Run) -> Mode:
    """By the stages of the run."""
    settings = run.facts.get("settings")
    stages = settings.get("stages") if isinstance(settings, Mapping) else None
    named = [stage for stage in stages or () if isinstance(stage, Mapping)] if isinstance(stages, list) else []
    return mode_of({str(stage.get("name")) for stage in named})


def by_site(run: Run, metric: str) -> dict[str, dict[int, float]]:
    """One series per site, then the whole federation as "all sites"."""
    lines = {site: run.series(metric, site) for site in run.sites}
    return {name: points for name, points in (lines | {ALL: run.series(metric)}).items() if points}


def kept(run: Run) -> dict[tuple[str, int], tuple[int, int]]:
    """(site, round) -> (images kept, images looked at), from the history or else from the selection records."""
    rows = {
        (site, number): (int(run.cells["kept", site, number]), int(value))
        for (metric, site, number), value in run.cells.items()
        if metric == "images" and site and ("kept", site, number) in run.cells
    }
    if rows:
        return dict(sorted(rows.items()))
    counts: dict[tuple[str, int], tuple[int, int]] = {}
    for d in run.decisions:
        chosen, seen = counts.get((d.site, d.round), (0, 0))
        counts[d.site, d.round] = chosen + d.kept, seen + 1
    return dict(sorted(counts.items()))


def matrix(run: Run, metric: str = "map50") -> HeatMap | None:
    """Every site's local model and the global one on every site's validation set, in the last round that has both."""
    prefix = f"{metric}@"
    rounds = {r for m, site, r in run.cells if m.startswith(prefix) and site}
    if not rounds:
        return None
    last, ours = max(rounds), federated(run)
    values = {
        (m.removeprefix(prefix) if m.startswith(prefix) else ours, site or ALL): value
        for (m, site, r), value in run.cells.items()
        if r == last and (m == metric or m.startswith(prefix))
    }
    models = sorted({m for m, _ in values}, key=lambda m: (m == ours, m))
    sites = sorted({s for _, s in values} - {ALL})
    low, high = _range(values.values())
    return HeatMap(
        f"mAP50 of every model on every site's validation images, round {last}",
        models,
        [*sites, *([ALL] if all((m, ALL) in values for m in models) else [])],
        values,
        row_label="model",
        column_label="validation images of",
        framed=frozenset((s, s) for s in sites if s in models),
        low=low,
        high=high,
    )


def compared(run: Run, metric: str = "map50") -> list[Compared]:
    """The global model and the baselines at their last round, best first; empty without a baseline.

    Overall is the row of site "" if every model has one (a mean weighted by images), else the plain mean over sites
    for all of them.
    """
    names = {federated(run): metric} | ({SECOND: f"own_{metric}"} if f"own_{metric}" in run.metrics else {})
    names |= {_baseline(m, metric): m for m in run.metrics if m.startswith(BASELINE) and m.endswith(f"/{metric}")}
    names.pop("federated", None)  # the global model once more
    if not any(m.startswith(BASELINE) for m in names.values()) or not run.series(metric):
        return []
    sites = {name: {s: v for s in run.sites if (v := run.last(m, s)) is not None} for name, m in names.items()}
    overall = {name: run.last(m) for name, m in names.items()}
    weighted = all(value is not None for value in overall.values())
    if not weighted:
        overall = {name: statistics.fmean(values.values()) if values else None for name, values in sites.items()}
    found = [Compared(name, sites[name], value, weighted) for name, value in overall.items() if value is not None]
    return sorted(found, key=lambda line: (-line.overall, line.name))


def about(run: Run) -> list[str]:
    """What the run was, in a few words each: sites, rounds, date, strategy, selector, detector, seed."""
    config = run.facts.get("config")
    facts = flat(run.facts) | (dict(config) if isinstance(config, Mapping) else {})
    found = [f"{len(run.sites)} sites", f"{max(run.rounds, default=0)} rounds"]
    found += [_date(facts["started"])] if "started" in facts else []
    for key, name in (("strategy", ""), ("select", "selector "), ("model", ""), ("seed", "seed ")):
        value = facts.get(key)
        if isinstance(value, Mapping):
            value = value.get("name") or value.get("arch")
        found += [f"{name}{value}"] if value is not None else []
    return found


def flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of run.json without its long tables, the settings among the rest."""
    settings = facts.get("settings")
    rest = {k: v for k, v in facts.items() if k not in ("config", "machine", "settings", "versions")}
    return rest | (dict(settings) if isinstance(settings, Mapping) else {})


def plain(value: object) -> str:
    """A JSON value as words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items())
    return ", ".join(map(plain, value)) if isinstance(value, list) else str(value)


def _date(value: object) -> str:
    """ISO 8601 as people write it; anything else as it is."""
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return str(value)


def headline(run: Run) -> list[Tile]:
    """The tiles at the top of the page; those without data are left out."""
    whose = "global model" if federated(run) == GLOBAL else "sites' own layers"
    tiles = [_quality(run, "map50", f"mAP50, {whose}"), _quality(run, "map50_95", f"mAP50-95, {whose}")]
    tiles += [_quality(run, "own_map50", "mAP50, sites' own models"), _advantage(run), _share(run)]
    tiles += [_time(run), _traffic(run), _troubles(run)]
    return [tile for tile in tiles if tile]


def _quality(run: Run, metric: str, name: str) -> Tile | None:
    series = run.series(metric)
    if not series:
        return None
    (first, start), (last, end) = next(iter(series.items())), list(series.items())[-1]
    best = max(series, key=lambda r: (series[r], -r))
    small = f"{number(start)} in round {first}"
    if best != last:
        small += f"; best {number(series[best])} in round {best}"
    return Tile(f"{name}, all sites", number(end), small)


def _advantage(run: Run) -> Tile | None:
    lines = compared(run)
    local = [line for line in lines if is_local(line.name)]
    if not local:
        return None
    ours = next(line for line in lines if line.name == federated(run))
    return Tile(
        "mAP50 over the best site alone",
        signed(ours.overall - local[0].overall),
        f"{local[0].name}: {number(local[0].overall)}",
    )


def _share(run: Run) -> Tile | None:
    counts = kept(run).values()
    chosen, seen = sum(k for k, _ in counts), sum(n for _, n in counts)
    return (
        Tile("Images kept for training", percent(chosen / seen), f"{chosen:,} of {seen:,} looked at") if seen else None
    )


def _time(run: Run) -> Tile | None:
    rounds = list(run.series("round_s").values())
    total = run.facts.get("seconds", sum(rounds) or None)
    if not isinstance(total, int | float):
        return None
    return Tile("Time", duration(total), f"{duration(statistics.median(rounds))} a round (median)" if rounds else "")


def _traffic(run: Run) -> Tile | None:
    down, up = (sum(run.series(metric).values()) for metric in ("bytes_down", "bytes_up"))
    return Tile("Traffic", size(down + up), f"{size(down)} down, {size(up)} up") if down + up else None


def _troubles(run: Run) -> Tile:
    count = len(run.failures) or int(sum(run.series("failed").values()))
    return Tile("Refused or failed", str(count), "updates and evaluations" if count else "every update counted")


def is_local(name: str) -> bool:
    """Whether a compared model is one site's own."""
    return name.endswith(" alone")


def _baseline(metric: str, of: str) -> str:
    """ "baseline/local-north/map50" -> "north alone"."""
    name = metric.removeprefix(BASELINE).removesuffix(f"/{of}")
    return f"{name.removeprefix('local-')} alone" if name.startswith("local-") else name


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Tenths below the lowest and above the highest value, at least 0.2 apart."""
    known = list(values)
    low, high = min(known) // 0.1 / 10, -(-max(known) // 0.1) / 10
    return (low, high) if high - low > 0.15 else (low, low + 0.2)
