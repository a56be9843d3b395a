"""Clients that train together as one torch.func program, against the same clients one after the other.

    python benchmarks/vectorised.py [--repeats 7] [--check] [--out runs/bench/rounds.jsonl]

The whole round of the engine with Local(vectorised=True), 10 of 100 clients, each 100 images in 10 steps, takes turns
in one process with plain local training of 10 clients in a bare PyTorch loop. The first repeat, in which the program
is recorded, is dropped. Before that, one and five rounds of FedAvg, FedProx and SCAFFOLD must end at the weights
of one client after the other.
"""

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _common import about, append, busy, single_thread, spread, tell
from rounds import CLIENTS, PER_ROUND, Case, measured, sites

import polypfed as pf

CASES = (Case("cnn", images=100, rounds=10, goal=0.65), Case("small", images=100, rounds=20, goal=0.50))
TITLES = {"cnn": "CNN, 38 k", "small": "MLP, 9 k"}
STRATEGIES = (pf.strategies.FedAvg(), pf.strategies.FedProx(mu=0.1), pf.strategies.Scaffold())
TOLERANCE = {1: 1e-5, 5: 1e-2}  # by rounds, of how far the model moved: see difference


def difference(case: Case, strategy: pf.strategies.Strategy, rounds: int) -> float:
    """Distance of the two final models over how far the sequential one moved.

    A round differs by rounding. Over several, a unit of the network whose two largest inputs are equal but for
    rounding takes the other one now and then, and from there the two runs drift apart, as two machines would.
    """
    fed = [pf.Federation(clients=sites(case), strategy=strategy, per_round=PER_ROUND, evaluate="off") for _ in range(2)]
    start = fed[0].clients[0].initial()[1]
    alone, joint = (
        f.run(rounds, pf.backends.Local(vectorised=v)).model for f, v in zip(fed, (False, True), strict=True)
    )
    return float(np.linalg.norm(joint - alone) / np.linalg.norm(alone - start))


def table(rows: list[dict[str, Any]], differences: dict[str, dict[int, list[float]]]) -> str:
    lines = [
        "| model | one by one, ms CPU | together, ms CPU | ratio | goal | weights differ by, 1 round | 5 rounds |",
        "|---" * 7 + "|",
    ]
    for case in CASES:
        own = [row for row in rows if row["case"]["name"] == case.name]
        ms = [median(row["cpu_ms"][mode] for row in own) for mode in ("train", "vmap")]
        loaded = " (busy)" if any(busy(row["load"]) for row in own) else ""
        apart = " | ".join(f"{max(found):.0e}" for found in differences[case.name].values())
        ratio = spread([row["ratio"] for row in own])
        lines.append(f"| {TITLES[case.name]} | {ms[0]:.1f}{loaded} | {ms[1]:.1f} | {ratio} | {case.goal} | {apart} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--check", action="store_true", help="exit code 1 if a goal is missed")
    options.add_argument("--out", type=Path, default=Path("runs/bench/rounds.jsonl"))
    given = options.parse_args(arguments)
    single_thread()
    torch.set_num_threads(1)
    differences = {c.name: {n: [difference(c, s, n) for s in STRATEGIES] for n in TOLERANCE} for c in CASES}
    assert all(max(d) < TOLERANCE[n] for of in differences.values() for n, d in of.items()), differences
    rows = [row for case in CASES for row in measured(case, "vmap", given.repeats)]
    where = about("vectorised", ("polypfed", "numpy", "torch"), clients=CLIENTS, per_round=PER_ROUND)
    append(given.out, (where | row | {"difference": differences} for row in rows))
    tell(given.out, where, table(rows, differences))
    missed = False
    for case in CASES:
        ratio = median(row["ratio"] for row in rows if row["case"]["name"] == case.name)
        if ratio > case.goal:
            missed = True
            print(f"{case.name}: {ratio:.3f} of {CLIENTS} clients one by one, the goal is {case.goal}", file=sys.stderr)
    return int(given.check and missed)


if __name__ == "__main__":
    sys.exit(main())
