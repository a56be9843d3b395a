"""What a federated round costs beside the training in it: CPU time over plain training, and peak memory.

    python benchmarks/rounds.py [--quick] [--check] [--repeats 7] [--out runs/bench/rounds.jsonl]

100 clients, 10 a round, one epoch of plain SGD, batch 10, one thread. "train" is the same local training of 10 clients
in a bare PyTorch loop: nothing received, sent, checked or averaged. "polypfed" is the whole round of the engine in this
process; "float32" the same with FedAvg(dtype="float32"); "naive" the loop with a deep copy per client and a list of
state dicts averaged at the end. The modes take turns within one process in rotated order, the first repeat is dropped,
and each ratio is of one repeat. Memory is the peak of a fresh process per number of clients.

Appends one JSON line per repeat to --out and prints a Markdown table. --check: exit code 1 if a goal is missed by more
than a tenth; --quick: under a minute.
"""

import argparse
import copy
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

import polypfed as pf
from polypfed.federation import Event

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
CLIENTS, PER_ROUND, BATCH, LR = 100, 10, 10, 0.05
MODES = ("train", "polypfed", "float32", "naive")


@dataclass(frozen=True)
class Case:
    """A model, and how many images each client has."""

    name: str
    images: int
    rounds: int
    goal: float | None


CASES = (
    Case("cnn", images=100, rounds=4, goal=1.05),
    Case("mlp", images=100, rounds=1, goal=1.25),
    Case("mlp", images=10, rounds=3, goal=None),
)
TITLES = {"cnn": "CNN, 38 k parameters", "mlp": "MLP, 7.2 M parameters"}


def model(name: str) -> nn.Module:
    """For 8 x 8 grey digits."""
    torch.manual_seed(0)
    if name == "cnn":
        convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
        return nn.Sequential(
            *convolutions, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)
        )
    wide = 2650
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, 10)
    )


def digits(images: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One data set per client: ten blurred prototypes with noise; views of one tensor, so that all share its memory."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 10, CLIENTS * images)
    prototypes = draw.random((10, 1, 8, 8))
    pixels = torch.from_numpy(
        (prototypes[labels] + 0.3 * draw.standard_normal((len(labels), 1, 8, 8))).astype(np.float32)
    )
    return list(zip(pixels.split(images), torch.from_numpy(labels).split(images), strict=True))


def local(module: nn.Module, data: tuple[torch.Tensor, torch.Tensor], order: np.random.Generator) -> float:
    """One epoch, as anybody would write it."""
    x, y = data
    optimizer, total = torch.optim.SGD(module.parameters(), lr=LR), 0.0
    module.train()
    for rows in torch.from_numpy(order.permutation(len(x))).split(BATCH):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total


def train(case: Case, seed: int) -> float:
    """CPU seconds per round of local training alone."""
    module, data, draw = model(case.name), digits(case.images), np.random.default_rng(seed)
    for warm in data[:1]:
        local(module, warm, draw)
    begun = time.process_time()
    for _ in range(case.rounds):
        for client in draw.choice(CLIENTS, PER_ROUND, replace=False):
            local(module, data[client], draw)
    return (time.process_time() - begun) / case.rounds


def naive(case: Case, seed: int) -> float:
    """CPU seconds per round with a copy of the model per client and a list of state dicts."""
    module, data, draw = model(case.name), digits(case.images), np.random.default_rng(seed)
    local(copy.deepcopy(module), data[0], draw)
    begun = time.process_time()
    for _ in range(case.rounds):
        states = []
        for client in draw.choice(CLIENTS, PER_ROUND, replace=False):
            own = copy.deepcopy(module)
            local(own, data[client], draw)
            states.append(own.state_dict())
        module.load_state_dict({k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]})
    return (time.process_time() - begun) / case.rounds


def sites(case: Case, count: int = CLIENTS) -> list[pf.clients.TorchClient]:
    """Clients that share one resident model."""
    module, data = model(case.name), digits(case.images)
    return [
        pf.clients.TorchClient(
            f"c{i:03d}",
            module,
            nn.functional.cross_entropy,
            data[i % CLIENTS],
            optimizer=partial(torch.optim.SGD, lr=LR),
            batch=BATCH,
        )
        for i in range(count)
    ]


def engine(case: Case, seed: int, **strategy: Any) -> float:
    """CPU seconds per round of the engine, from "round" to "saved"; the first round warms up."""
    marks: list[float] = []

    def mark(event: Event) -> None:
        if event.kind in ("round", "saved") and event.round > 1:
            marks.append(time.process_time())

    fed = pf.Federation(
        clients=sites(case),
        strategy=pf.strategies.FedAvg(**strategy),
        per_round=PER_ROUND,
        seed=seed,
        evaluate="off",
    )
    history = fed.run(case.rounds + 1, pf.backends.Local(), listen=mark)
    assert not history.failures
    return sum(end - start for start, end in zip(marks[::2], marks[1::2], strict=True)) / case.rounds


RUNNERS: Mapping[str, Callable[[Case, int], float]] = {
    "train": train,
    "polypfed": engine,
    "float32": partial(engine, dtype="float32"),
    "naive": naive,
}


def measured(case: Case, repeats: int, modes: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row per repeat; the first is warm-up and not among them."""
    rows = []
    for repeat in range(repeats + 1):
        order = [modes[(i + repeat) % len(modes)] for i in range(len(modes))]
        before, seconds = os.getloadavg()[0], {}
        for mode in order:
            seconds[mode] = RUNNERS[mode](case, repeat)
        rows.append(
            {
                "case": asdict(case),
                "repeat": repeat,
                "order": order,
                "cpu_ms": {mode: round(1000 * s, 2) for mode, s in seconds.items()},
                "ratio": {mode: round(s / seconds["train"], 4) for mode, s in seconds.items()},
                "load": [before, os.getloadavg()[0]],
            }
        )
    return rows[1:]


def peak(count: int, per_round: int | None) -> float:
    """Peak memory in MB of this process after two rounds of the large model; run it in a process of its own."""
    fed = pf.Federation(clients=sites(CASES[2], count), per_round=per_round, evaluate="off")
    assert not fed.run(2, pf.backends.Local()).failures
    # Not getrusage: its maximum is inherited from the process that started this one.
    high = next(line for line in _lines("/proc/self/status") if line.startswith("VmHWM"))
    return int(high.split()[1]) / 1024


def peaks(counts: tuple[int, ...], everyone: bool) -> dict[str, Any]:
    """Peak memory by number of clients, each in a fresh process."""
    command = [sys.executable, __file__, "--peak"]
    found = {}
    for count in counts:
        share = count if everyone else PER_ROUND
        done = subprocess.run([*command, str(count), str(share)], capture_output=True, text=True, check=True)
        found[count] = round(float(done.stdout), 1)
    return {"peak_mb": found, "per_round": "all" if everyone else PER_ROUND, "model": "mlp"}


def about() -> dict[str, Any]:
    """Where and with what this was measured."""
    named = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "bench": "rounds",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "clients": CLIENTS,
        "per_round": PER_ROUND,
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "cpu": f"{named[0] if named else platform.processor()}, {os.cpu_count()} cores",
        "versions": {
            "polypfed": pf.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def spread(values: list[float]) -> str:
    return f"**{median(values):.3f}** ({min(values):.3f} to {max(values):.3f})"


def table(rows: list[dict[str, Any]], memory: list[dict[str, Any]]) -> str:
    """Markdown: the median ratio to "train" with its range, and peak memory."""
    modes = [mode for mode in MODES[1:] if mode in rows[0]["ratio"]]
    lines = [f"| model | local work | train, ms CPU | goal | {' | '.join(modes)} |", "|---" * (4 + len(modes)) + "|"]
    for case in CASES:
        own = [r for r in rows if r["case"] == asdict(case)]
        if not own:
            continue
        ratios = " | ".join(spread([r["ratio"][mode] for r in own]) for mode in modes)
        busy = " (busy)" if any(max(r["load"]) > (os.cpu_count() or 1) + 1 for r in own) else ""
        train_ms = median([r["cpu_ms"]["train"] for r in own])
        work = f"{case.images} images, {case.images // BATCH} steps"
        lines.append(f"| {TITLES[case.name]} | {work} | {train_ms:.0f}{busy} | {case.goal or 'none'} | {ratios} |")
    lines += ["", "| peak MB, MLP | " + " | ".join(f"{n} clients" for n in memory[0]["peak_mb"]) + " |"]
    lines.append("|---" * (1 + len(memory[0]["peak_mb"])) + "|")
    for m in memory:
        lines.append(f"| {m['per_round']} a round | " + " | ".join(f"{v:.0f}" for v in m["peak_mb"].values()) + " |")
    return "\n".join(lines) + "\n"


def missed(rows: list[dict[str, Any]], memory: list[dict[str, Any]]) -> list[str]:
    """Goals missed by more than a tenth."""
    found = []
    for case in CASES:
        own = [r["ratio"]["polypfed"] for r in rows if r["case"] == asdict(case)]
        if case.goal and own and median(own) > 1.1 * case.goal:
            found.append(f"{case.name}, {case.images} images: {median(own):.3f}, the goal is {case.goal}")
    for m in memory:
        values = list(m["peak_mb"].values())
        if max(values) > 1.1 * values[0]:
            found.append(f"memory grows with the number of clients: {m['peak_mb']}")
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--check", action="store_true")
    options.add_argument("--out", type=Path, default=Path("runs/bench/rounds.jsonl"))
    options.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    if not ONE_THREAD.items() <= os.environ.items():  # read when numpy is loaded, so it takes a fresh start
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ONE_THREAD)
    torch.set_num_threads(1)
    if given.peak:
        print(peak(*given.peak))
        return 0
    repeats, modes = (2, MODES[:2]) if given.quick else (given.repeats, MODES)
    rows = [row for case in CASES for row in measured(case, repeats, modes)]
    counts = (10, 100) if given.quick else (10, 100, 400)
    memory = [peaks(counts, everyone) for everyone in ((False,) if given.quick else (False, True))]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with open(given.out, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(about() | row) + "\n" for row in [*rows, *memory])
    print(table(rows, memory))
    problems = missed(rows, memory)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if given.check and problems else 0


if __name__ == "__main__":
    sys.exit(main())
