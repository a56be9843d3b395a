"""polypfed's simulation beside those of Flower, NVFlare and pfl-research: the same clients, data, draws and weights.

    python -m peers.run [--models cnn,big] [--backends ...] [--repeats 3] [--check] [--out runs/bench/peers.jsonl]

from the folder benchmarks, or `python benchmarks/rounds.py --backend flower,nvflare,pfl`. Every engine runs the same
training function on 100 clients of which 10 train in a round; NVFlare's simulator, which takes a process per client,
on 4 of 4, and polypfed beside it on the same. Each run is a process tree of its own, one thread per process, taking
turns; its CPU seconds are those of the whole tree between the end of round 1 and the end of the last, its memory the
peak of the tree's proportional set size. The final weights of every run must agree with polypfed's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from _common import ONE_THREAD, about

HERE = Path(__file__).resolve().parent
SILENT = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "PFL_GRAPH_CACHE": "0"}
DRIVERS = {
    # backend: (module, package it needs, configurations)
    "train": ("ours", "torch", ("train",)),
    "polypfed": ("ours", "torch", ("default", "best")),
    "vmap": ("ours", "torch", ("vmap",)),
    "pfl": ("pfl_sim", "pfl", ("default",)),
    "flower": ("flower_sim", "flwr", ("default", "best")),
    "nvflare": ("nvflare_sim", "nvflare", ("default", "best")),
}
MANY, FEW = 100, 4  # clients; the few beside NVFlare
ROUNDS = {MANY: 10, FEW: 6}
TOLERANCE = 2e-3  # of the final weights, relative to their norm: see agree


class Watch(threading.Thread):
    """Samples the memory of all processes that carry `folder` in their environment."""

    def __init__(self, folder: str) -> None:
        super().__init__(daemon=True)
        self.folder, self.over = folder, threading.Event()
        self.pss = self.rss = 0.0
        self.processes = 0

    def members(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("PEERS_FOLDER") == self.folder:
                    found.append(process)
            except psutil.Error:
                pass
        return found

    def run(self) -> None:
        while not self.over.wait(0.4):
            sizes = [size for p in self.members() if (size := _memory(p)) is not None]
            self.pss = max(self.pss, sum(s[0] for s in sizes))
            self.rss = max(self.rss, sum(s[1] for s in sizes))
            self.processes = max(self.processes, len(sizes))


def _memory(process: psutil.Process) -> tuple[float, float] | None:
    try:
        full = process.memory_full_info()
    except psutil.Error:
        return None
    return full.pss / 2**20, full.rss / 2**20


def run_once(backend: str, configuration: str, case: str, clients: int, rounds: int) -> dict[str, Any]:
    """One run in a process tree of its own: its figures and its final weights."""
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as folder:
        path = os.pathsep.join([str(HERE.parent), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | ONE_THREAD | SILENT | {"PEERS_FOLDER": folder, "PYTHONPATH": path}
        command = [sys.executable, "-m", f"peers.{DRIVERS[backend][0]}", case, str(rounds), configuration, str(clients)]
        watch, load, begun = Watch(folder), os.getloadavg()[0], time.monotonic()
        watch.start()
        with open(Path(folder) / "log", "wb") as log:
            done = subprocess.run(command, env=environment, cwd=folder, stdout=log, stderr=log, timeout=900)
        watch.over.set()
        watch.join()
        _end(watch.members())
        if done.returncode:
            raise RuntimeError(f"{backend}: {(Path(folder) / 'log').read_text(errors='replace')[-2000:]}")
        found = figures(Path(folder), begun, rounds)
        weights = np.load(Path(folder) / "final.npy") if (Path(folder) / "final.npy").exists() else None
    memory = {"peak_pss_mb": round(watch.pss), "peak_rss_mb": round(watch.rss), "processes": watch.processes}
    return {**found, **memory, "load": [load, os.getloadavg()[0]], "weights": weights}


def _end(left: list[psutil.Process]) -> None:
    """What an engine leaves behind."""
    for process in left:
        with suppress(psutil.Error):
            process.kill()


def figures(folder: Path, begun: float, rounds: int) -> dict[str, Any]:
    """Seconds and CPU seconds from a driver's marks."""
    marks = [json.loads(line) for line in (folder / "marks.jsonl").read_text().splitlines()]
    at = {(m["event"], m["round"]): m["at"] for m in marks}
    cpu = {m["round"]: m["cpu"] for m in marks if m["cpu"] is not None}
    between = {(a, b): cpu[b][0] - sum(cpu[a]) for a, b in ((0, 1), (1, rounds))}  # without the looking
    walls = [at["round", n] - at["round", n - 1] for n in range(2, rounds + 1)]
    return {
        "import_s": round(at["ready", 0] - begun, 3),
        "start_s": round(at["begin", 0] - begun, 3),
        "first_round_s": round(at["round", 1] - at["begin", 0], 4),
        "first_round_cpu_s": round(between[0, 1], 2),
        "cpu_ms": round(1000 * between[1, rounds] / (rounds - 1), 2),
        "wall_ms": round(1000 * median(walls), 2),
        "wall_ms_min": round(1000 * min(walls), 2),
    }


def versions() -> dict[str, str]:
    found = {}
    for package in ("polypfed", "torch", "numpy", "flwr", "ray", "nvflare", "pfl"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def plan(backends: list[str]) -> list[tuple[str, str, int]]:
    """(backend, configuration, clients) of one repeat; beside NVFlare everybody runs with few clients too."""
    kinds = [(b, c) for b in backends for c in DRIVERS[b][2]]
    many = [(b, c, MANY) for b, c in kinds if b != "nvflare"] if backends != ["nvflare"] else []
    few = [(b, c, FEW) for b, c in kinds if b in ("train", "polypfed", "nvflare")] if "nvflare" in backends else []
    return many + few


def measure(models: list[str], backends: list[str], repeats: int, out: Path) -> list[dict[str, Any]]:
    """All runs, in turns; one JSON line each as soon as it is done."""
    rows: list[dict[str, Any]] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    began = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    for repeat in range(1, repeats + 1):
        for case in models:
            order = plan(backends)
            order = order[repeat % len(order) :] + order[: repeat % len(order)]
            finals: dict[int, dict[str, Any]] = {MANY: {}, FEW: {}}
            for backend, configuration, clients in order:
                row = {"bench": "peers", "model": case, "backend": backend, "configuration": configuration}
                row |= {
                    "clients": clients,
                    "rounds": ROUNDS[clients],
                    "repeat": f"{began}, {repeat}",
                    "versions": versions(),
                }
                row |= {k: v for k, v in about("peers", ()).items() if k in ("date", "cpu")}
                row |= run_once(backend, configuration, case, clients, ROUNDS[clients])
                finals[clients][f"{backend}, {configuration}"] = row.pop("weights")
                rows.append(row)
                print(f"{case}, {clients} clients, {backend}, {configuration}: {row['cpu_ms']} ms", file=sys.stderr)
                with open(out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            for found in finals.values():
                agree(found)
    return rows


def agree(finals: dict[str, Any]) -> None:
    """Every engine must have done the same work: its final weights are polypfed's, but for rounding.

    Flower adds updates up as they come, and clients trained together round otherwise; where a max-pool or ReLU then
    turns the other way, runs drift apart by some 1e-4. Another draw of clients or examples makes a tenth and more.
    """
    ours = finals.get("polypfed, default")
    for name, weights in finals.items():
        if ours is not None and weights is not None:
            difference = float(np.linalg.norm(weights - ours) / np.linalg.norm(ours))
            verdict = "" if difference < TOLERANCE else ": OTHER WORK"
            print(f"  {name}: weights differ by {difference:.1e}{verdict}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    from peers.table import missed, table

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", default="cnn,big")
    options.add_argument("--backends", default=",".join(DRIVERS))
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--check", action="store_true", help="exit code 1 if a goal is missed")
    options.add_argument("--out", type=Path, default=Path("runs/bench/peers.jsonl"))
    options.add_argument("--table", action="store_true", help="measure nothing; the table of all that is in --out")
    given = options.parse_args(arguments)
    if given.table:
        print(table([json.loads(line) for line in given.out.read_text().splitlines()]))
        return 0
    backends = [b for b in given.backends.split(",") if find_spec(DRIVERS[b][1])]
    for lacking in set(given.backends.split(",")) - set(backends):
        print(f"{lacking}: {DRIVERS[lacking][1]} is not installed", file=sys.stderr)
    rows = measure(given.models.split(","), backends, given.repeats, given.out)
    print(table(rows))
    problems = missed(rows)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if given.check and problems else 0


if __name__ == "__main__":
    sys.exit(main())
