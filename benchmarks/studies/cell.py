"""One cell: its sites, its federation (or its pooled training), and the row it comes to."""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _common import about

from polypfed import run as runs
from polypfed.clients import DetectorClient
from polypfed.config import backend, federation
from polypfed.core.errors import ConfigError
from polypfed.core.history import History
from polypfed.data import Site
from polypfed.privacy import stage as stages
from polypfed.select import Random
from polypfed.select.config import from_config
from studies import watch
from studies.study import Cell

_STAGES = {"topk": stages.TopK, "randomk": stages.RandomK, "quantise": stages.Quantise, "encrypt": stages.Encrypt}
_STAGES |= {"mask": stages.Mask}
_MEANS = ("map50", "map50_95", "precision", "recall", "f1")


def outcome(cell: Cell, folder: Path, data: Path) -> dict[str, Any]:
    """Run the cell in `folder`, from where it was broken off, and say what came of it."""
    sites = runs.sites_of(cell.config, data)
    clients = pooled(cell, sites) if cell.pool else runs.clients_of(cell.config, sites, None)
    if not cell.pool:
        selector = from_config(cell.config.select)
        clients = [replace(c, selector=selector) for c in clients]
    clients = [watch.watched(c, folder) for c in clients]
    fed = replace(federation(cell.config, clients), stages=tuple(_stage(s) for s in cell.stages))
    rounds, carrier, began, load = cell.config.federation.rounds, backend(cell.config), time.monotonic(), _load()
    begun = (folder / "run.json").exists()
    history = fed.resume(folder, rounds, carrier) if begun else fed.run(rounds, carrier, folder)
    where = about("studies", ("polypfed", "numpy", "torch", "ultralytics"))
    row = {"key": cell.key, "cell": cell.name, "seed": cell.seed, **figures(history, rounds)}
    row |= watch.figures(list(watch.looks(folder, sorted(sites))))
    row |= {"minutes": round((time.monotonic() - began) / 60, 2), "resumed": begun, "load": [load, _load()]}
    row |= {"date": datetime.now(UTC).date().isoformat(), "cpu": where["cpu"], "versions": where["versions"]}
    return row | {"settings": cell.settings}


def pooled(cell: Cell, sites: Mapping[str, Site]) -> list[DetectorClient]:
    """One site is given all training images of the pool and the others train on none; all validate as ever.

    So pooled training is scored, kept and resumed as a federation is, and its figures are of the same images.
    """
    pool = sorted(sites) if "*" in cell.pool else sorted(cell.pool)
    if unknown := set(pool) - set(sites):
        raise ConfigError(f"no site is called {min(unknown)!r}", where=f"{cell.name}: pool")
    keeper, folders = pool[0], [sites[name].train for name in pool]
    return [
        replace(
            c, train=folders if c.name == keeper else c.train, selector=c.selector if c.name == keeper else Random(0.0)
        )
        for c in runs.clients_of(cell.config, dict(sites), None)
    ]


def figures(history: History, rounds: int) -> dict[str, Any]:
    """What the table and the plots show."""
    scores, last = history.table("map50"), max(history.table("map50").rounds)
    names = [s for s in scores.sites if s]

    def total(metric: str) -> float:
        return sum(r["value"] for r in history.rows if r["site"] and r["metric"] == metric)

    return {
        **{m: history.values(m)[last] for m in _MEANS if history.values(m)},
        "curve": [scores[r, ""] for r in scores.rounds],
        "by_round": by_round(history, rounds),
        "by_site": {s: scores[last, s] for s in names},
        "images": total("images"),
        "kept": total("kept"),
        "cpu_s": round(total("cpu_s"), 1),
        "bytes_up": sum(history.values("bytes_up").values()) / rounds,
        "bytes_down": sum(history.values("bytes_down").values()) / rounds,
        "failures": len(history.failures),
    }


def by_round(history: History, rounds: int) -> dict[str, list[float]]:
    """From round 1: images seen and kept, training loss per image kept, CPU seconds of all sites, minutes."""
    tables = {m: history.table(m).cells for m in ("images", "kept", "cpu_s", "loss")}

    def of(metric: str, number: int) -> dict[str, float]:
        return {site: value for (r, site), value in tables[metric].items() if r == number and site}

    found: dict[str, list[float]] = {"images": [], "kept": [], "cpu_s": [], "loss": [], "minutes": []}
    for number in range(1, rounds + 1):
        for metric in ("images", "kept", "cpu_s"):
            found[metric].append(round(sum(of(metric, number).values()), 1))
        losses, kept = of("loss", number), of("kept", number)
        whole = sum(kept[site] for site in losses)
        found["loss"].append(round(sum(losses[s] * kept[s] for s in losses) / whole, 4) if whole else 0.0)
        found["minutes"].append(round(history.values("round_s").get(number, 0.0) / 60, 3))
    return found


def _stage(table: Mapping[str, Any]) -> stages.Stage:
    name = str(table.get("name"))
    if name not in _STAGES:
        raise ConfigError(f"no stage is called {name!r}", where="stages", remedy=f"Known: {', '.join(_STAGES)}")
    built: stages.Stage = _STAGES[name](**{k: v for k, v in table.items() if k != "name"})
    return built


def _load() -> float:
    return round(os.getloadavg()[0], 2)
