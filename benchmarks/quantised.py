"""Does encryption cost accuracy? mAP50 of the same federated training in float32 and under `he`.

    python benchmarks/quantised.py [examples/selection.toml] [--seeds 0 1 2] [--rounds 6] [--epochs 2] [--warm FILE]

Every arm has the same frames, seeds and settings:

plain    float32 deltas
nudged   float32 deltas, the first model moved by one part in a million: what chance does, as training amplifies
         any difference
he-8     encrypted, at two sites 8.5 bits a value in five lanes: the default
he-15    encrypted, 14.8 bits in three lanes

Encryption itself changes nothing: `he` gives the bits of the same rounds with the integers added in the open, see
tests/federation/test_blind.py. Sites train on all their images; the learning rate falls by 0.6 a round and there are
200 validation images a site, so that chance moves the last score less. --warm: weights to start from, else random ones.

Appends one JSON line per run to --out (runs/bench/quantised.jsonl) and prints mAP50 by seed in points, and each arm's
difference to `plain` with the standard error of its mean.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from _common import about, append, busy

from polypfed import config as configs
from polypfed import run as runs
from polypfed.config import Config

ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nudged": {},
    "he-8": {"privacy.mode": "he", "privacy.bits": 8.0},
    "he-15": {"privacy.mode": "he", "privacy.bits": 14.5},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("config", type=Path, nargs="?", default=Path("examples/selection.toml"))
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--warm", type=Path)
    options.add_argument("--out", type=Path, default=Path("runs/bench/quantised.jsonl"))
    given = options.parse_args()
    common = {"federation.rounds": given.rounds, "train.epochs": given.epochs, "select": {"name": "all"}}
    common |= {"train.lr_decay": 0.6, "data.synth.val": 200}
    common |= {"model.warm_start": given.warm} if given.warm else {}
    scores: dict[str, list[float]] = {arm: [] for arm in given.arms}
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            for arm in given.arms:
                seeds = {"federation.seed": seed, "model.init_seed": seed, "data.synth.seed": seed}
                row = one(configs.load(given.config, common | seeds | ARMS[arm]), arm, Path(folder))
                where = about("quantised", ("polypfed", "numpy", "torch", "tenseal"), arm=arm, seed=seed)
                append(given.out, [where | row | {"warm": bool(given.warm), "epochs": given.epochs}])
                scores[arm].append(row["map50"][-1])
    print(table(given.seeds, scores))


def one(config: Config, arm: str, folder: Path) -> dict[str, Any]:
    """One run; its mAP50 after each round, in points."""
    sites = runs.sites_of(config, folder)
    clients = runs.clients_of(config, sites, folder / arm)
    fed, begun, load = configs.federation(config, clients), time.monotonic(), os.getloadavg()[0]
    if arm == "nudged":
        spec, x = clients[0].initial()
        fed = replace(fed, initial=(spec, x * np.float32(1 + 1e-6)))
    history = fed.run(config.federation.rounds, configs.backend(config), folder / arm)
    found = history.table("map50")
    map50 = [100 * found[r, ""] for r in found.rounds]
    print(f"{arm}, seed {config.federation.seed}: {' '.join(f'{v:.1f}' for v in map50)}", flush=True)
    return {"map50": map50, "seconds": time.monotonic() - begun, "busy": busy([load, os.getloadavg()[0]])}


def table(seeds: list[int], scores: Mapping[str, list[float]]) -> str:
    """Markdown: points of mAP50 by seed, and the paired differences to `plain`."""
    lines = [
        f"| arm | {' | '.join(f'seed {s}' for s in seeds)} | mean | difference to plain |",
        "|---" * (len(seeds) + 3) + "|",
    ]
    for arm, found in scores.items():
        gaps = [a - b for a, b in zip(found, scores["plain"], strict=True)]
        error = stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        apart = "" if arm == "plain" else f"{mean(gaps):+.2f} ± {error:.2f} ({', '.join(f'{g:+.1f}' for g in gaps)})"
        lines.append(f"| {arm} | {' | '.join(f'{v:.1f}' for v in found)} | {mean(found):.1f} | {apart} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
