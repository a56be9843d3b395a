"""UltraFlwr's task: Flower's own FedAvg over parts of a YOLO, beside ours, on the same sites in the same run."""

import os
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from _common import about
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from on_flower import InProcess
from studies import cell as cells
from studies import engine
from studies.engine import points
from studies.study import Cell, Study, digest, load

from polypfed import run as runs
from polypfed.clients import DetectorClient
from polypfed.core.messages import Task
from polypfed.core.seeds import derive
from polypfed.select import All
from polypfed.strategies import FedAvg as Ours
from polypfed.strategies.registry import Registry

HERE = Path(__file__).parent
PACKAGES = ("polypfed", "numpy", "torch", "ultralytics", "flwr")
Row = dict[str, Any]


class Member:
    """A site that keeps its own model and takes the averaged parts into it.

    Args:
        parts: groups of the model that are averaged; the others stay at the site.
    """

    def __init__(self, client: DetectorClient, parts: Sequence[str], seed: int) -> None:
        self.client, self.seed = client, seed
        self.spec, x = client.initial()
        self.mine = x.copy()
        self.shared = [p.name for p in self.spec.parts if p.group in parts]

    def give(self) -> ArrayRecord:
        """One array per tensor, as a state dict travels; integer counters are left out here as in ours."""
        views = self.spec.views(self.mine)
        return ArrayRecord({name: Array(np.ascontiguousarray(views[name])) for name in self.shared})

    def take(self, record: ArrayRecord) -> None:
        views = self.spec.views(self.mine)
        for name, array in record.items():
            views[name][...] = array.numpy()

    def train(self, number: int) -> int:
        config = {"seed": derive(self.seed, "client", number, self.client.name), "strategy": dict(PLAIN)}
        update = self.client.fit(Task(number, "fit", {"model": self.mine.copy()}, config))
        self.mine = self.mine + update.vectors["delta"]
        return int(update.weight)

    def score(self, number: int) -> tuple[float, int]:
        found = self.client.evaluate(Task(number, "evaluate", {"model": self.mine.copy()}, {"seed": 0}))
        return found.metrics["map50"], int(found.weight)


PLAIN = Registry.describe(Ours())


class Counted:
    """A ClientApp of all members that counts what its training messages carry: the arrays, and the whole message."""

    def __init__(self, members: dict[int, Member]) -> None:
        self.members, self.app = members, ClientApp()
        self.up = self.down = 0
        self.scores: dict[str, list[float]] = {m.client.name: [] for m in members.values()}
        self.weights: dict[str, int] = {}
        self.app.train()(self._train)
        self.app.evaluate()(self._evaluate)

    def _train(self, message: Message, context: Context) -> Message:
        member, arrays = self.members[context.node_id], message.content["arrays"]
        self.down += _payload(arrays)
        member.take(arrays)
        examples = member.train(int(message.content["config"]["server-round"]))
        sent = member.give()
        self.up += _payload(sent)
        content = RecordDict({"arrays": sent, "metrics": MetricRecord({"num-examples": examples})})
        return Message(content=content, reply_to=message)

    def _evaluate(self, message: Message, context: Context) -> Message:
        member = self.members[context.node_id]
        member.take(message.content["arrays"])
        score, images = member.score(int(message.content["config"]["server-round"]))
        self.scores[member.client.name].append(score)
        self.weights[member.client.name] = images
        metrics = MetricRecord({"map50": score, "num-examples": images})
        return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


def _payload(record: ArrayRecord) -> int:
    return sum(array.numpy().nbytes for array in record.values())


def federate(parts: Sequence[str], cell: Cell, data: Path) -> Counted:
    """Flower's FedAvg, unchanged, over these parts; its messages go through its own serialisation."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    sites = runs.sites_of(cell.config, data)
    clients = [replace(c, selector=All()) for c in runs.clients_of(cell.config, sites, None)]
    app = Counted({11 + i: Member(c, parts, cell.seed) for i, c in enumerate(clients)})
    grid: Any = InProcess(app.app, list(app.members))
    count = len(clients)
    strategy = FedAvg(min_train_nodes=count, min_evaluate_nodes=count, min_available_nodes=count)
    start = next(iter(app.members.values())).give()
    strategy.start(grid, start, num_rounds=cell.config.federation.rounds)
    return app


def peer(name: str, parts: Sequence[str], cell: Cell, data: Path) -> Row:
    """Its row."""
    load, rounds, app = os.getloadavg()[0], cell.config.federation.rounds, federate(parts, cell, data)
    weights = list(app.weights.values())
    curve = [float(np.average(each, weights=weights)) for each in zip(*app.scores.values(), strict=True)]
    where = about("peers", PACKAGES)
    row = {"key": peer_key(cell, parts), "cell": name, "seed": cell.seed, "engine": "flower", "parts": list(parts)}
    row |= {"map50": curve[-1], "curve": curve, "by_site": {n: s[-1] for n, s in app.scores.items()}}
    row |= {"bytes_up": app.up / rounds, "bytes_down": app.down / rounds, "rounds": rounds}
    row |= {"load": [round(load, 2), round(os.getloadavg()[0], 2)], "date": where["date"][:10], "cpu": where["cpu"]}
    return row | {"versions": where["versions"], "settings": cell.settings}


def peer_key(cell: Cell, parts: Sequence[str]) -> str:
    return digest([cell.settings, "flower", list(parts)])


def peers(budget: str) -> Iterator[tuple[str, list[str], Cell]]:
    """Each way of Flower's, with the plain cell of ours whose settings it trains under, seed by seed."""
    tables = tomllib.loads((HERE / "yolo.toml").read_text(encoding="utf-8"))
    for cell in study(budget).cells:
        if cell.name == "full":
            yield from ((name, table["parts"], cell) for name, table in tables["peers"].items())


def study(budget: str) -> Study:
    return load("yolo", budget, HERE)


def complete(budget: str, path: Path, work: Path) -> Iterator[Row]:
    """Run what has no row yet, theirs and ours."""
    for name, parts, cell in peers(budget):
        if peer_key(cell, parts) not in engine.read(path):
            row = peer(name, parts, cell, work / "data" / cell.data_key)
            engine.keep(path, row)
            yield row
    yield from engine.complete(study(budget), path, work, cells.outcome)


def rows(budget: str, path: Path) -> list[Row]:
    """Those that are done: theirs, then ours."""
    done = engine.read(path)
    theirs = [done[k] | {"cell": n} for n, parts, c in peers(budget) if (k := peer_key(c, parts)) in done]
    return theirs + [r | {"engine": "polypfed"} for r in engine.rows(study(budget), path)]


def table(budget: str, path: Path) -> str:
    """Bytes of one site in one round, arrays only; Flower's full FedAvg is what all are compared with."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows(budget, path):
        found.setdefault((row["engine"], row["cell"]), []).append(row)
    base = found.get(("flower", "full"))
    if base is None:
        return ""
    one = study(budget)
    lines = [
        f"**{one.question}**",
        "",
        "| engine | averaged | MB up + down | fewer | x ours, 8bit | seeds | mAP50 | points |",
    ]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
    least = found.get(("polypfed", "8bit"))
    for (name, what), some in found.items():
        ratio = "" if least is None else f"{volume(some) / volume(least):.2f}"
        score = mean(r["map50"] for r in some)
        cells = [name, what, f"{volume(some):.2f}", f"{1 - volume(some) / volume(base):.1%}", ratio, str(len(some))]
        lines.append("| " + " | ".join([*cells, f"**{score:.3f}**", f"{points(some, base) or 0:+.1f}"]) + " |")
    return "\n".join([*lines, *_noise(base, found.get(("polypfed", "full"))), "", _caption(found, base)]) + "\n"


def _noise(theirs: list[Row], ours: list[Row] | None) -> list[str]:
    """What rounding alone does to a score: both average the same whole models, in another order."""
    if not ours:
        return []
    first, last = ([mean(r["curve"][i] for r in some) for some in (theirs, ours)] for i in (0, -1))
    first[1] = mean(r["curve"][1] for r in ours)  # ours has the model before any training too
    other = {r["seed"]: r["map50"] for r in ours}
    most = max(100 * abs(r["map50"] - other[r["seed"]]) for r in theirs if r["seed"] in other)
    return [
        "",
        "Flower's and our average of whole models differ in rounding alone: after round 1 they score "
        f"{first[0]:.4f} and {first[1]:.4f}, in the end {last[0]:.3f} and {last[1]:.3f}, and with one seed they are "
        f"{most:.1f} points apart. So much is within what chance does in so short a training.",
    ]


def _caption(found: dict[tuple[str, str], list[Row]], base: list[Row]) -> str:
    every = [r for some in found.values() for r in some]
    last = max(every, key=lambda r: str(r["date"]))
    shown, loads = last["settings"], [v for r in every for v in r["load"]]
    versions = ", ".join(f"{k} {v}" for k, v in (last["versions"] | base[0]["versions"]).items())
    seeds = ", ".join(str(s) for s in sorted({r["seed"] for r in every}))
    return (
        f"{shown['model']['arch']} at {shown['model']['image_size']} px, COCO weights, {len(last['by_site'])} centres, "
        f"{shown['federation']['rounds']} rounds of {shown['train']['epochs']} epochs, seeds {seeds}; a site scores "
        f"its own completed model; {last['date']}, {last['cpu']}, load {min(loads):.0f} to {max(loads):.0f}; "
        f"{versions}. Images: PolypGen (CC BY 4.0). UltraFlwr's paper reports up to 83 % fewer bytes a round, for "
        "YOLO11n on blood cells and surgical tools (arXiv 2503.15161)."
    )


def volume(some: Sequence[Row]) -> float:
    """MB up and down, of one site in one round."""
    return mean((r["bytes_up"] + r["bytes_down"]) / len(r["by_site"]) for r in some) / 1e6


def plot(budget: str, path: Path) -> bytes | None:
    """The same as points."""
    from studies import draw, show

    found = rows(budget, path)
    if not found:
        return None
    named = [r | {"cell": f"{'Flower' if r['engine'] == 'flower' else 'ours'}: {r['cell']}"} for r in found]
    one = replace(study(budget), against="Flower: full")
    return draw.plot(one, show.by_cell(one, named), show.caption(named))
