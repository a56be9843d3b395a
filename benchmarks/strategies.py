"""Rounds to 90 % on scikit-learn's digits, for labels from sorted to shuffled and more and more local work.

    python benchmarks/strategies.py [--quick] [--check] [--seeds 5] [--out runs/bench/strategies.jsonl]

The set-up is that of SCAFFOLD's tables (Karimireddy et al., 2020, section 7): s % of the images are dealt out evenly,
the others sorted by label and cut into equal shares for 20 sites, of which 4 train in a round; an epoch is 5 steps.
The model is logistic regression with a ridge penalty; for sorted labels also without the penalty, and a small network.
All strategies have the same local learning rate, batches, sites and seeds; only FedAdam's server rate was chosen by a
few tries. The figure is the first round after which the global model is right on 90 % of 360 images that no site trains
on; a run ends there, or at --limit. Penalty and rate were chosen so that many local epochs lead the sites apart.
Without the penalty they hardly do: digits are separable, and the mean of sites that each know their own labels is a
fair classifier, so FedAvg is slower than SCAFFOLD there, but not slower with more epochs.

Appends one JSON line per run to --out; prints Markdown tables and writes them and a plot beside --out. --check: exit
code 1 if SCAFFOLD needs more than half of FedAvg's rounds on sorted labels anywhere, or the shape is another than the
paper's: FedAvg needs more rounds as local epochs grow and as similarity falls, SCAFFOLD does not as epochs grow.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _common import about, append, busy, single_thread, tell
from numpy.typing import NDArray
from sklearn.datasets import load_digits

import polypfed as pf
from polypfed import strategies as st
from polypfed.federation import Event
from polypfed.report import LinePlot, write_plot

SITES, PER_ROUND, STEPS, TARGET, TEST = 20, 4, 5, 0.9, 360
EPOCHS = (1, 5, 10, 20)
MIXED = 0  # stands for: each site its own number of epochs, 1 to 10
SIMILARITY = (0, 10, 100)
STRATEGIES: dict[str, st.Strategy] = {
    "fedavg": st.FedAvg(),
    "scaffold": st.Scaffold(),
    "fedprox": st.FedProx(mu=0.1),
    "fednova": st.FedNova(),
    "feddyn": st.FedDyn(alpha=0.1),
    "fedadam": st.FedAdam(eta=0.03, tau=0.01),
}
PAIR = ("fedavg", "scaffold")
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Problem:
    """A model: logistic regression, or one hidden layer; with a ridge penalty."""

    name: str
    penalty: float
    lr: float
    hidden: int = 0

    def start(self, seed: int) -> Floats:
        """The initial weights."""
        if not self.hidden:
            return np.zeros(65 * 10, np.float32)
        draw = np.random.default_rng(seed)
        first = draw.standard_normal((65, self.hidden)) * (2 / 65) ** 0.5
        second = np.vstack([draw.standard_normal((self.hidden, 10)) * self.hidden**-0.5, np.zeros((1, 10))])
        return np.concatenate([first.ravel(), second.ravel()]).astype(np.float32)

    def scores(self, w: Floats, x: Floats) -> tuple[Floats, Floats, Floats]:
        """(class scores, inputs of the last layer, weights of the last layer)."""
        if not self.hidden:
            return x @ w.reshape(65, 10), x, w.reshape(65, 10)
        cut = 65 * self.hidden
        inner = np.maximum(x @ w[:cut].reshape(65, self.hidden), 0)
        inner = np.hstack([inner, np.ones((len(x), 1), np.float32)])
        last = w[cut:].reshape(self.hidden + 1, 10)
        return inner @ last, inner, last

    def gradient(self, w: Floats, x: Floats, truth: Floats) -> Floats:
        """Of the mean cross-entropy and the penalty."""
        scores, inner, last = self.scores(w, x)
        p = np.exp(scores - scores.max(1, keepdims=True))
        error = (p / p.sum(1, keepdims=True) - truth) / len(x)
        parts = [(inner.T @ error).ravel()]
        if self.hidden:
            back = (error @ last[:-1].T) * (inner[:, :-1] > 0)
            parts.insert(0, (x.T @ back).ravel())
        out: Floats = np.concatenate(parts) + np.float32(self.penalty) * w
        return out


RIDGE = Problem("logistic regression", penalty=2e-3, lr=0.2)
BESIDE = (Problem("without the penalty", penalty=0.0, lr=0.2), Problem("network, 32 hidden", 0.0, lr=0.2, hidden=32))


@dataclass
class Shard:
    """One site's images, met in batches whose order it draws itself."""

    problem: Problem
    x: Floats
    y: NDArray[np.intp]
    test_x: Floats
    test_y: NDArray[np.intp]
    draw: np.random.Generator
    _queue: list[NDArray[np.intp]] = field(default_factory=list)

    def gradient(self, w: Floats) -> Floats:
        """Of the next batch."""
        if not self._queue:
            self._queue = np.array_split(self.draw.permutation(len(self.x)), STEPS)
        rows = self._queue.pop()
        return self.problem.gradient(w, self.x[rows], np.eye(10, dtype=np.float32)[self.y[rows]])

    def wrong(self, w: Floats) -> float:
        """Share of this site's part of the test images that the model gets wrong."""
        return float((self.problem.scores(w, self.test_x)[0].argmax(1) != self.test_y).mean())


def shards(problem: Problem, similarity: int, seed: int) -> Iterator[Shard]:
    """One per site."""
    data, draw = load_digits(), np.random.default_rng(seed)
    x = np.hstack([data.data / 16, np.ones((len(data.data), 1))]).astype(np.float32)
    order = draw.permutation(len(x))
    test, train = order[:TEST], order[TEST:]
    even, rest = np.split(train, [len(train) * similarity // 100])
    rest = rest[np.argsort(data.target[rest], kind="stable")]
    parts = zip(np.array_split(even, SITES), np.array_split(rest, SITES), np.array_split(test, SITES), strict=True)
    for number, (mine, more, check) in enumerate(parts):
        rows = np.concatenate([mine, more])
        order_of = np.random.default_rng([seed, number])
        yield Shard(problem, x[rows], data.target[rows], x[check], data.target[check], order_of)


class Reached(Exception):
    """The target is reached."""


def rounds_needed(problem: Problem, similarity: int, epochs: int, strategy: st.Strategy, seed: int, limit: int) -> int:
    """The first round whose model reaches the target; `limit` + 1 if none does."""
    draw = np.random.default_rng([seed, 7])
    sites = [
        pf.NumpyClient(
            f"s{i:02d}",
            shard.gradient,
            problem.start(seed),
            lr=problem.lr,
            steps=STEPS * (epochs or int(draw.integers(1, 11))),
            loss=shard.wrong,
        )
        for i, shard in enumerate(shards(problem, similarity, seed))
    ]
    wrong: dict[str, float] = {}
    now = 0

    def listen(event: Event) -> None:
        nonlocal now
        if isinstance(event.reply, pf.Evaluation):
            wrong[event.site] = event.reply.metrics["loss"]
        if event.kind == "saved":
            now = event.round
            if 1 - sum(wrong.values()) / SITES >= TARGET - 1e-9:
                raise Reached

    fed = pf.Federation(clients=sites, strategy=strategy, per_round=PER_ROUND, seed=seed, keep_best="-loss")
    try:
        assert not fed.run(limit, pf.backends.Local(), listen=listen).failures
    except Reached:
        return now
    return limit + 1


def measured(cases: list[tuple[Problem, int, int, str]], seeds: int, limit: int) -> Iterator[dict[str, Any]]:
    """One row per case and seed."""
    for problem, similarity, epochs, name in cases:
        for seed in range(seeds):
            begun, load = time.process_time(), os.getloadavg()[0]
            rounds = rounds_needed(problem, similarity, epochs, STRATEGIES[name], seed, limit)
            yield {
                "problem": problem.name,
                "similarity": similarity,
                "epochs": epochs,
                "strategy": name,
                "seed": seed,
                "rounds": rounds if rounds <= limit else None,
                "limit": limit,
                "cpu_s": round(time.process_time() - begun, 3),
                "load": [load, os.getloadavg()[0]],
            }


Cells = Mapping[tuple[str, int, int, str], list[int]]


def cells(rows: list[dict[str, Any]]) -> dict[tuple[str, int, int, str], list[int]]:
    """(problem, similarity, epochs, strategy) -> rounds by seed; a run that never got there counts as the limit."""
    found: dict[tuple[str, int, int, str], list[int]] = {}
    for r in rows:
        key = r["problem"], r["similarity"], r["epochs"], r["strategy"]
        found.setdefault(key, []).append(r["rounds"] or r["limit"] + 1)
    return found


def ratios(found: Cells, problem: str, similarity: int, epochs: int) -> list[float]:
    """SCAFFOLD's rounds over FedAvg's, seed by seed; too high where FedAvg never got there."""
    ours, theirs = (found[problem, similarity, epochs, name] for name in ("scaffold", "fedavg"))
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def table(found: Cells, limit: int) -> str:
    """Markdown: median rounds with the range."""
    columns = sorted({(p != RIDGE.name, p, s) for p, s, _, _ in found})
    heads = [f"{s} % similar" if p == RIDGE.name else f"0 %, {p}" for _, p, s in columns]
    lines = [f"| strategy | local epochs | {' | '.join(heads)} |", "|---|---|" + "---:|" * len(heads)]
    for name in STRATEGIES:
        for epochs in sorted({e for _, _, e, n in found if n == name}, key=lambda e: e or 99):
            row = [_cell(found.get((p, s, epochs, name)), limit) for _, p, s in columns]
            lines.append(f"| {name} | {epochs or '1 to 10'} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _cell(rounds: list[int] | None, limit: int) -> str:
    if not rounds:
        return "–"
    texts = [f"{v:g}" if v <= limit else f"> {limit}" for v in (median(rounds), min(rounds), max(rounds))]
    return f"**{texts[0]}**" + (f" ({texts[1]} to {texts[2]})" if texts[1] != texts[2] else "")


def ratio_table(found: Cells) -> str:
    """Markdown: SCAFFOLD over FedAvg."""
    keys = sorted({(p != RIDGE.name, p, s, e or 99) for p, s, e, _ in found})
    lines = ["| problem | similar | local epochs | SCAFFOLD / FedAvg |", "|---|---|---|---|"]
    for _, problem, similarity, epochs in keys:
        r = ratios(found, problem, similarity, epochs % 99)
        work = "1 to 10" if epochs == 99 else epochs
        lines.append(f"| {problem} | {similarity} % | {work} | **{median(r):.2f}** ({min(r):.2f} to {max(r):.2f}) |")
    return "\n".join(lines) + "\n"


def plot(found: Cells, limit: int) -> LinePlot:
    """Median rounds against local epochs, FedAvg and SCAFFOLD at each similarity; bands: the range, sorted labels."""
    series: dict[str, dict[int, float]] = {}
    bands: dict[str, dict[int, tuple[float, float]]] = {}
    for (problem, similarity, epochs, name), rounds in sorted(found.items(), key=lambda item: item[0][3]):
        if problem == RIDGE.name and name in PAIR and epochs != MIXED:
            series.setdefault(f"{name} {similarity} %", {})[epochs] = min(median(rounds), limit)
            if not similarity:
                bands.setdefault(f"{name} 0 %", {})[epochs] = min(min(rounds), limit), min(max(rounds), limit)
    return LinePlot(
        f"Rounds to 90 % on digits, by local epochs and similarity of the sites; {limit}: not reached",
        series,
        f"rounds to 90 % (at most {limit})",
        x_label="local epochs",
        bands=bands,
        low=0.0,
        write=lambda v: f"{v:g}",
    )


def missed(found: Cells) -> list[str]:
    """Where the claim or the shape does not hold."""
    sorted_cells = {(p, e) for p, s, e, _ in found if s == 0}
    problems = [
        f"{p}, {e or '1 to 10'} epochs, sorted labels: SCAFFOLD needs {median(ratios(found, p, 0, e)):.2f} of FedAvg"
        for p, e in sorted(sorted_cells)
        if median(ratios(found, p, 0, e)) > 0.5
    ]
    middle = {key: median(rounds) for key, rounds in found.items()}
    epochs = sorted(e for p, e in sorted_cells if p == RIDGE.name and e != MIXED)
    few, many = ({n: middle[RIDGE.name, 0, e, n] for n in PAIR} for e in (epochs[0], epochs[-1]))
    if many["fedavg"] <= 1.25 * few["fedavg"]:
        problems.append(f"FedAvg does not need more rounds with more epochs: {few['fedavg']} to {many['fedavg']}")
    if many["scaffold"] > 1.25 * few["scaffold"]:
        problems.append(f"SCAFFOLD needs more rounds with more epochs: {few['scaffold']} to {many['scaffold']}")
    for e in epochs:
        by_similarity = [middle[key] for key in sorted(middle) if key[0] == RIDGE.name and key[2:] == (e, "fedavg")]
        if by_similarity != sorted(by_similarity, reverse=True):
            problems.append(f"FedAvg, {e} epochs: rounds do not fall with similarity: {by_similarity}")
    return problems


def wanted(quick: bool) -> list[tuple[Problem, int, int, str]]:
    """The cases."""
    if quick:
        return [(RIDGE, s, e, name) for s in (0, 100) for e in (1, 10) for name in PAIR]
    whole = [(RIDGE, s, e, n) for s in SIMILARITY for e in EPOCHS for n in STRATEGIES if n != "fednova"]
    whole += [(RIDGE, s, MIXED, n) for s in SIMILARITY for n in STRATEGIES]  # FedNova is FedAvg where all do the same
    return whole + [(p, 0, e, name) for p in BESIDE for e in EPOCHS for name in PAIR]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--limit", type=int, default=None, help="rounds after which a run is given up")
    options.add_argument("--quick", action="store_true", help="two strategies, under a minute")
    options.add_argument("--check", action="store_true")
    options.add_argument("--out", type=Path, default=Path("runs/bench/strategies.jsonl"))
    given = options.parse_args()
    single_thread()
    limit = given.limit or (100 if given.quick else 150)
    where = about("strategies", ("polypfed", "numpy", "scikit-learn"), sites=SITES, per_round=PER_ROUND, target=TARGET)
    rows, cases = [], wanted(given.quick)
    for row in measured(cases, given.seeds, limit):
        append(given.out, [where | row])
        rows.append(row)
        print(f"\r{len(rows)} of {len(cases) * given.seeds} runs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    found = cells(rows)
    write_plot(plot(found, limit), given.out.with_suffix(".svg"))
    mark = " (busy)" if busy([v for r in rows for v in r["load"]]) else ""
    spent = f"{given.seeds} seeds, {sum(r['cpu_s'] for r in rows):.0f} s CPU{mark}"
    tell(given.out, where, table(found, limit), ratio_table(found), spent)
    problems = missed(found)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if given.check and problems else 0


if __name__ == "__main__":
    sys.exit(main())
