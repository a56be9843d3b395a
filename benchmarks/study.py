"""A config over several seeds and selectors: accuracy against the baselines, images kept, CPU time, minutes.

    python benchmarks/study.py polypfed/demo.toml --seeds 0 1 2 --selectors below all
    python benchmarks/study.py examples/polypgen.toml --selectors below all

Writes one JSON line per run and a Markdown table below --out. CPU time is that of the sites' `fit` (scoring, selection
and training); baselines are trained with the first selector's run only, as they do not depend on it.
"""

import argparse
import json
import os
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polypfed import config as configs
from polypfed import run as runs
from polypfed.config import Baselines, Config
from polypfed.core.history import History
from polypfed.core.rundir import machine

SELECTORS: dict[str, dict[str, Any]] = {
    "below": {"name": "below", "threshold": 0.7},
    "all": {"name": "all"},
    "below-replay": {"name": "replay", "share": 0.1, "inner": {"name": "below", "threshold": 0.7}},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("config", type=Path)
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--selectors", nargs="+", default=["below"], choices=sorted(SELECTORS))
    options.add_argument("--plain", action="store_true", help="no baselines, no cross-site matrix")
    options.add_argument("--out", type=Path, default=Path("runs/study"))
    given = options.parse_args()
    rows = [
        one(given.config, seed, selector, given.out, whole=not given.plain and selector == given.selectors[0])
        for seed in given.seeds
        for selector in given.selectors
    ]
    name = given.config.stem
    (given.out / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    table = markdown(rows)
    (given.out / f"{name}.md").write_text(table)
    print(table)


def one(path: Path, seed: int, selector: str, out: Path, *, whole: bool) -> dict[str, Any]:
    """One run from nothing, and what it came to."""
    config = configs.load(path, {"federation.seed": seed, "data.seed": seed})
    if config.data.synth is not None:
        config = replace(config, data=replace(config.data, synth=replace(config.data.synth, seed=seed)))
    config = replace(config, select=SELECTORS[selector])
    if not whole:
        config = replace(config, baselines=Baselines(), federation=replace(config.federation, evaluate="global"))
    folder = out / f"{path.stem}-seed{seed}-{selector}"
    shutil.rmtree(folder, ignore_errors=True)
    begun, load = time.monotonic(), os.getloadavg()[0]
    sites = runs.sites_of(config, folder)
    history, _ = runs.federate(config, sites, folder)
    federated = time.monotonic()
    compared = runs.compare(config, sites, history, folder)
    row = {"config": path.stem, "seed": seed, "selector": selector, **summary(history, config)}
    row["baselines"] = {
        r["metric"].split("/")[1]: r["value"] for r in compared if not r["site"] and r["metric"].endswith("/map50")
    }
    row |= {"federated_min": (federated - begun) / 60, "all_min": (time.monotonic() - begun) / 60}
    row |= {"date": datetime.now(UTC).date().isoformat(), "machine": machine(), "versions": runs.versions()}
    row |= {"cores": os.cpu_count(), "load_before": load, "load_after": os.getloadavg()[0]}
    print(
        json.dumps({k: row[k] for k in ("seed", "selector", "map50", "baselines", "kept", "cpu_s", "all_min")}),
        flush=True,
    )
    return row


def summary(history: History, config: Config) -> dict[str, Any]:
    """The figures of one federated run."""
    last = config.federation.rounds
    sites = history.table("map50").sites[:-1]
    by_round = history.table("map50")
    total = {
        m: sum(r["value"] for r in history.rows if r["site"] and r["metric"] == m) for m in ("images", "kept", "cpu_s")
    }
    return {
        "rounds": last,
        "map50_start": by_round[0, ""],
        "map50": by_round[last, ""],
        "map50_best": max(by_round[r, ""] for r in by_round.rounds),
        "map50_95": history.table("map50_95")[last, ""],
        "by_site": {s: [by_round[r, s] for r in by_round.rounds] for s in sites},
        "kept_by_round": [sum(history.table("kept")[r, s] for s in sites) for r in range(1, last + 1)],
        "images": total["images"],
        "kept": total["kept"],
        "cpu_s": total["cpu_s"],
        "round_s": list(history.values("round_s").values()),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table of all runs."""
    head = "| seed | selector | mAP50 round 0 | mAP50 | mAP50-95 | central | best local | kept | CPU s | minutes |"
    lines = [head, "|" + "---|" * 10]
    for r in rows:
        local = [v for k, v in r["baselines"].items() if k.startswith("local-")]
        cells = [
            r["seed"],
            r["selector"],
            *[f"{r[k]:.3f}" for k in ("map50_start", "map50", "map50_95")],
            f"{r['baselines']['central']:.3f}" if "central" in r["baselines"] else "-",
            f"{max(local):.3f}" if local else "-",
            f"{r['kept'] / r['images']:.0%}",
            f"{r['cpu_s']:.0f}",
            f"{r['all_min']:.1f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    about = rows[-1]
    lines += ["", f"{about['date']}, {about['cores']} cores, {about['machine']['system']}, {about['versions']}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
