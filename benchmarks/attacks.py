"""One malicious site of five: the mAP50 that each attack costs, by reducer, on real images.

    python benchmarks/attacks.py                         # runs what is missing, then table and plot
    python benchmarks/attacks.py --show                  # table and plot from the rows there are
    python benchmarks/attacks.py --images 110 --honest 0 --rounds 30 --seeds 0 1 2    # a day without a GPU

Sites: the four centres of PolypGen and Kvasir-SEG, equally many images each; the malicious one is Kvasir-SEG. It
follows the protocol, passes the gate and, but for what it sends, trains as it should. All cells of a seed start from
the same model: COCO weights, then --honest rounds without an attack. The site is malicious in the --rounds after these,
at a third of the learning rate: at the whole of it, chance moves the score by more than most attacks.
The score is the mean over the validation images of the four honest centres; the loss is against the plain mean of five
honest sites of the same seed. "absent" is the plain mean without the fifth site: what a rule could reach that drops it.

sign flip     -4 times its update: in a plain mean, the other four cancelled
scaling       100 times its update
noise         Gaussian, 10 times as long as its update
ALIE          the mean of the honest updates less z standard deviations of each value; it knows them all. The paper's
              z is 0 for one of five, so 1.5 as in its experiments. Source: Baruch et al., A Little Is Enough:
              Circumventing Defenses For Distributed Learning, 2019, section 3.
label flip    trains honestly, but its boxes lie half an image away from the polyps
claims        sign flip, and it says that it has trained on 1,000 times as many images

"nudged" is the plain mean of five honest sites from a model moved by one part in a million: what chance does.

Cells that are done are not repeated. Images are looked for in $POLYPFED_DATA, then beside the checkout.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist, mean
from typing import Any

import numpy as np
from _common import about, append, lines, single_thread

import polypfed as pf
from polypfed.core.errors import DataError, LayoutError
from polypfed.core.messages import Reply, Task, Update
from polypfed.core.rundir import load_model, save_model
from polypfed.testing.carried import Through

RESULTS = Path(__file__).parent / "results" / "attacks"
CENTRES = ("kvasir_seg", "polypgen_c1", "polypgen_c2", "polypgen_c3", "polypgen_c4")
WHO = CENTRES[0]
REDUCERS: dict[str, Any] = {
    "mean": pf.Mean(),
    "default": pf.NormClip(refuse_opposed=True),
    "clip alone": pf.NormClip(),
    "median": pf.Median(),
    "trimmed mean": pf.TrimmedMean(0.2),
    "Krum": pf.Krum(f=1),
    "multi-Krum": pf.MultiKrum(f=1),
    "geometric median": pf.GeometricMedian(),
}
"""The default of deployments is `polypfed.remote.clipped(FedAvg())`."""

Change = Callable[[Update, Sequence[Update]], Update]
"""From what the site would send, and the updates of the others, what it sends."""


def sent(update: Update, delta: Any, weight: int | None = None) -> Update:
    """The update with another delta, (P,)."""
    vectors = dict(update.vectors) | {"delta": np.ascontiguousarray(delta, np.float32)}
    return replace(update, vectors=vectors, weight=update.weight if weight is None else weight)


def times(factor: float, claim: int = 1) -> Change:
    """So many times the update; `claim` times its examples."""
    return lambda own, _: sent(own, np.float32(factor) * own.vectors["delta"], claim * own.weight)


def noise(own: Update, _: Sequence[Update]) -> Update:
    """A random direction, 10 times as long as the update."""
    draw = np.random.default_rng(own.round).standard_normal(own.vectors["delta"].size, np.float32)
    return sent(own, draw * np.float32(10 * np.linalg.norm(own.vectors["delta"]) / np.linalg.norm(draw)))


def alie(z: float) -> Change:
    """mean - z * standard deviation of the others, value by value."""

    def change(own: Update, others: Sequence[Update]) -> Update:
        deltas = np.stack([u.vectors["delta"] for u in others])
        return sent(own, deltas.mean(0) - np.float32(z) * deltas.std(0))

    return change


def alie_z(sites: int, bad: int) -> float:
    """The paper's z: the farthest that still has a majority's support, 0 where there is none.

    >>> round(alie_z(50, 24), 2), alie_z(5, 1)
    (1.43, 0.0)
    """
    share = (sites - bad - (sites // 2 + 1 - bad)) / (sites - bad)
    return max(0.0, NormalDist().inv_cdf(share))


ATTACKS: dict[str, Change] = {
    "none": times(1),
    "sign flip": times(-4),
    "scaling": times(100),
    "noise": noise,
    "ALIE": alie(1.5),
    "label flip": times(1),  # the lie is in its labels
    "claims": times(-4, claim=1000),
}


@dataclass
class Malicious(Through):
    """A backend in which the site `who` sends what `change` makes of its update.

    Attributes:
        known: updates of a round from a model that was trained from before, by name, seed, labels and model: the first
            round of every cell is the same.
    """

    who: str
    change: Change
    labels: str = ""
    inner: pf.backends.Local = field(default_factory=pf.backends.Local)
    known: dict[tuple[Any, ...], Update] = field(default_factory=dict)

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        """Honest replies, but for one site's update."""
        got: dict[str, Reply] = {}
        for name, task in sorted(tasks.items()):
            got[name] = self._honest(name, task, deadline)
        others = [u for n, u in got.items() if n != self.who and isinstance(u, Update)]
        for name, reply in got.items():
            bad = name == self.who and isinstance(reply, Update)
            yield self.change(reply, others) if bad else reply  # type: ignore[arg-type]  # an Update, as seen

    def _honest(self, name: str, task: Task, deadline: float) -> Reply:
        model = hashlib.sha256(task.vectors["model"]).digest()
        key = (name, task.seed, self.labels if name == self.who else "", model)
        if task.kind == "fit" and key in self.known:
            return replace(self.known[key], run=task.run)
        reply = next(iter(self.inner.exchange({name: task}, deadline)))
        if not isinstance(reply, Update):
            return reply
        reply = replace(reply, vectors={k: v.copy() for k, v in reply.vectors.items()})
        if task.round == 1:
            self.known[key] = reply
        return reply


def sites(data: Path, work: Path, images: int, seed: int) -> Path:
    """Five sites of `images` images for training and as many for validation, below `work`; made once."""
    from polypfed.data import partition, read_yolo

    made = work / f"sites-{images}-{seed}"
    if not made.exists():
        chosen = []
        for centre in CENTRES:
            samples = read_yolo(data / "real" / centre, centre=centre, source=centre)
            order = np.random.default_rng(seed).permutation(len(samples))
            chosen += [samples[i] for i in sorted(order[: 2 * images])]
        partition(chosen, made, "by_centre", val=0.5, seed=seed)
    return made


def moved(folder: Path, target: Path) -> Path:
    """The YOLO folder with its boxes half an image away, around the edges; made once."""
    from polypfed.data import read_yolo
    from polypfed.data.yolo import write_yolo

    if not target.exists():
        write_yolo([replace(s, boxes=_elsewhere(s.boxes, s.size)) for s in read_yolo(folder)], target)
    return target


def _elsewhere(boxes: Any, size: tuple[int, int]) -> Any:
    extent = np.array(size, np.float32)
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    centre = (boxes[:, :2] + half + extent / 2) % extent
    centre = np.clip(centre, half, extent - half)
    return np.concatenate([centre - half, centre + half], axis=1).clip(0, [*size, *size])


def clients_of(made: Path, work: Path, settings: Mapping[str, Any]) -> list[Any]:
    """One detector client per site; the malicious one's are of moved boxes under "label flip"."""
    from polypfed.clients import DetectorClient
    from polypfed.data import open_partition
    from polypfed.select import All

    fixed = {k: settings[k] for k in ("imgsz", "batch", "lr")} | {"warm_start": settings["warm"]}
    found = []
    for site in open_partition(made).values():
        lies = settings["attack"] == "label flip" and site.name == WHO
        train = moved(site.train, work / f"{made.name}-moved") if lies else site.train
        if settings["attack"] != "absent" or site.name != WHO:
            client = DetectorClient(site.name, train, site.val, selector=All(), init_seed=settings["seed"], **fixed)
            found.append(client)
    return found


def start(settings: Mapping[str, Any], made: Path, work: Path) -> tuple[Any, Any]:
    """Layout and model after the honest rounds; trained once."""
    settings = dict(settings) | {"lr": 3 * settings["lr"], "attack": "none"}
    common = [settings[k] for k in ("images", "honest", "imgsz", "batch", "lr", "seed")]
    place = work / f"start-{'-'.join(map(str, common))}"
    if not (place / "model.safetensors").exists():
        clients = clients_of(made, work, settings)
        fed = pf.Federation(clients=clients, seed=settings["seed"], evaluate="off")
        history = fed.run(settings["honest"], pf.backends.Local())
        place.mkdir(parents=True, exist_ok=True)
        save_model(place / "model.safetensors", history.spec, history.model)
    return load_model(place / "model.safetensors")


def cell(settings: Mapping[str, Any], made: Path, work: Path, known: dict[tuple[Any, ...], Update]) -> dict[str, Any]:
    """One federation under attack, and how its last model does at the honest sites."""
    clients = clients_of(made, work, settings)
    honest = [c for c in clients if c.name != WHO]
    attack, reducer = settings["attack"], REDUCERS[settings["reducer"]]
    spec, x = start(settings, made, work)
    begun, cpu = time.monotonic(), time.process_time()
    x = x * np.float32(1 + 1e-6) if attack == "nudged" else x
    backend = Malicious(WHO, ATTACKS.get(attack, times(1)), attack if attack == "label flip" else "", known=known)
    strategy = pf.strategies.FedAvg(reducer=reducer)
    fed = pf.Federation(
        clients=clients, strategy=strategy, initial=(spec, x), seed=settings["seed"] + 1, evaluate="off"
    )
    ended = ""
    try:
        history = fed.run(settings["rounds"], backend)
        model, failures = history.model, len(history.failures)
    except LayoutError as error:  # the model has grown beyond float32
        ended, model, failures = str(error), None, 0
    scores = dict.fromkeys((c.name for c in honest), 0.0)
    if model is not None:
        scored = pf.Federation(clients=honest, initial=(spec, model)).run(0, pf.backends.Local())
        scores = {c.name: scored.table("map50")[0, c.name] for c in honest}
    weights = {c.name: len(c._open("val")) for c in honest}
    total = sum(scores[n] * weights[n] for n in scores) / sum(weights.values())
    row: dict[str, Any] = {"map50": total, "by_site": scores, "failures": failures, "ended": ended}
    return row | {"cpu_s": round(time.process_time() - cpu, 1), "minutes": round((time.monotonic() - begun) / 60, 2)}


def wanted(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The settings of every cell, the most telling first."""
    pairs = [("none", "mean"), ("absent", "mean"), ("nudged", "mean")]
    pairs += [(a, r) for r in given.reducers for a in given.attacks if (a, r) != ("none", "mean")]
    for seed in given.seeds:
        for attack, reducer in pairs:
            yield {
                "attack": attack, "reducer": reducer, "seed": seed, "images": given.images, "honest": given.honest,
                "rounds": given.rounds, "imgsz": given.size, "batch": 8, "lr": 1e-3 / 3, "warm": given.warm,
            }  # fmt: skip


def key(settings: Mapping[str, Any]) -> str:
    """Of what decides a cell's outcome; where the weights lie does not."""
    named = dict(settings) | {"warm": Path(str(settings["warm"] or "")).name}
    return json.dumps(named, sort_keys=True)


def losses(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """(attack, reducer) -> points of mAP50 below the plain mean of honest sites, one for each seed."""
    base = {r["seed"]: r["map50"] for r in rows if (r["attack"], r["reducer"]) == ("none", "mean")}
    found: dict[tuple[str, str], list[float]] = {}
    for r in sorted(rows, key=lambda r: r["seed"]):
        if r["seed"] in base:
            found.setdefault((r["attack"], r["reducer"]), []).append(100 * (base[r["seed"]] - r["map50"]))
    return found


def points(lost: Sequence[float]) -> str:
    """The mean, and the range if there is one.

    >>> points([1.04]), points([1.0, 2.0, -0.5])
    ('+1.0', '+0.8 (-0.5 to +2.0)')
    """
    return f"{mean(lost):+.1f}" + (f" ({min(lost):+.1f} to {max(lost):+.1f})" if len(lost) > 1 else "")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: points lost, reducers down, attacks across."""
    lost, last = losses(rows), rows[-1]
    reducers = [r for r in REDUCERS if any(pair[1] == r for pair in lost)]
    out = [f"| reducer | {' | '.join(ATTACKS)} |", "|---|" + "---:|" * len(ATTACKS)]
    for reducer in reducers:
        cells = [points(lost[a, reducer]) if (a, reducer) in lost else "" for a in ATTACKS]
        out.append(f"| {reducer} | {' | '.join(cells)} |")
    base = lost.get(("none", "mean"), [])
    level = mean(r["map50"] for r in rows if (r["attack"], r["reducer"]) == ("none", "mean"))
    out += ["", f"Points of mAP50 lost against the plain mean of five honest sites ({level:.3f}); below 0: gained."]
    if len(base) > 1:
        out.append(
            f"With brackets: mean and range of up to {len(base)} seeds; without: one seed, not the same in all rows."
        )
    for name in ("absent", "nudged"):
        if (name, "mean") in lost:
            out.append(f"{name.capitalize()}: {points(lost[name, 'mean'])}.")
    attacked = {a: v for (a, r), v in lost.items() if r == "default" and a in ATTACKS and a != "none"}
    if attacked:
        worst = max(attacked, key=lambda a: max(attacked[a]))
        over = ", ".join(a for a in ATTACKS if a in attacked and round(max(attacked[a]), 1) > 2) or "none"
        out.append(f"On its worst seed the default loses {max(attacked[worst]):.1f} points ({worst}); above 2: {over}.")
        if missing := [a for a in ATTACKS if a != "none" and a not in attacked]:
            out.append(f"Not run under the default: {', '.join(missing)}.")
    seeds = len({r["seed"] for r in rows})
    budget = f"{last['honest']} honest rounds and {last['rounds']} under attack, 1 epoch each, {seeds} seed"
    versions = ", ".join(f"{k} {v}" for k, v in last["versions"].items())
    out += [
        "",
        f"YOLOv5n from COCO weights at {last['imgsz']} px, {last['images']} training and as many validation images "
        f"a site, {budget}{'s' * (seeds > 1)}; {last['date'][:10]}, {last['cpu']}; {versions}. "
        "Images: PolypGen (CC BY 4.0), Kvasir-SEG.",
    ]
    return "\n".join(out) + "\n"


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Bars: points lost by attack, mean and range over the seeds, one colour a reducer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from studies.draw import COLOURS

    lost = losses(rows)
    reducers = [r for r in REDUCERS if any(pair[1] == r for pair in lost)]
    attacks = [a for a in ATTACKS if any(pair[0] == a for pair in lost)]
    width = 0.8 / len(reducers)
    with matplotlib.rc_context({"svg.hashsalt": "attacks", "font.size": 8}):
        figure, axes = plt.subplots(figsize=(8.4, 3.6), layout="constrained")
        for number, reducer in enumerate(reducers):
            at = [i + (number - (len(reducers) - 1) / 2) * width for i in range(len(attacks))]
            found = [lost.get((a, reducer), [0.0]) for a in attacks]
            reach = [[mean(v) - min(v) for v in found], [max(v) - mean(v) for v in found]]
            bars = {"label": reducer, "color": COLOURS[number % len(COLOURS)], "error_kw": {"lw": 0.6}}
            axes.bar(at, [mean(v) for v in found], width, yerr=reach, **bars)
        axes.axhline(2, color="black", ls="--", lw=0.8)
        axes.set(xticks=range(len(attacks)), xticklabels=attacks, ylabel="points of mAP50 lost")
        axes.set_title("One malicious site of five (dashed: 2 points)")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def data_folder() -> Path:
    """Where real/ and weights/ lie.

    Raises:
        DataError: nowhere.
    """
    beside = Path(__file__).parents[2] / "shared" / "data"
    found = Path(os.environ.get("POLYPFED_DATA", beside))
    if not (found / "real").is_dir():
        raise DataError("holds no real/", where=found, remedy="Set POLYPFED_DATA to a folder with real/ and weights/")
    return found


def show(folder: Path) -> None:
    """Table and plot from the rows."""
    rows = [json.loads(line) for line in lines(str(folder / "cells.jsonl"))]
    text = table(rows)
    (folder / "table.md").write_text(text, encoding="utf-8")
    plot(rows, folder / "plot.svg")
    print(text)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=list(ATTACKS))
    options.add_argument("--reducers", nargs="+", default=list(REDUCERS), choices=list(REDUCERS))
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--images", type=int, default=100, help="of each site, for training and for validation each")
    options.add_argument("--honest", type=int, default=5, help="rounds before the site turns")
    options.add_argument("--rounds", type=int, default=3, help="rounds in which it is malicious")
    options.add_argument("--size", type=int, default=160)
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--work", type=Path, default=Path("runs/attacks"))
    options.add_argument("--show", action="store_true")
    given = options.parse_args()
    single_thread()
    if not given.show:
        data, path = data_folder(), given.out / "cells.jsonl"
        weights = data / "weights" / "yolov5n_coco_fp16.npz"
        given.warm = str(weights) if weights.exists() else None
        known: dict[tuple[Any, ...], Update] = {}
        packages = ("polypfed", "numpy", "torch", "ultralytics")
        for settings in wanted(given):
            if key(settings) in {r["key"] for r in map(json.loads, lines(str(path)))}:
                continue
            made = sites(data, given.work, given.images, settings["seed"])
            row = cell(settings, made, given.work, known)
            append(path, [{"key": key(settings)} | about("attacks", packages) | json.loads(key(settings)) | row])
            print(f"{settings['reducer']}, {settings['attack']}: {row['map50']:.3f}, {row['cpu_s']} CPU s", flush=True)
    show(given.out)


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"attacks: {error}")
