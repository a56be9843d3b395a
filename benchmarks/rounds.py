"""What a federated round costs beside the training in it: CPU time over plain training, and peak memory.

    python benchmarks/rounds.py [--quick] [--check] [--repeats 7] [--backend ...] [--out runs/bench/rounds.jsonl]

100 clients, 10 a round, one epoch of plain SGD, batch 10, one thread. "train" is the same local training of 10 clients
in a bare PyTorch loop: nothing received, sent, checked or averaged. "polypfed" is the whole round of the engine in this
process; "float32" the same with a float32 accumulator; "naive" the loop with a deep copy per client and a list of
state dicts averaged at the end. Each takes turns with "train" round by round in one process; a repeat is several such
pairs, the first repeat is dropped, and each ratio is of one repeat. Memory is the peak of a fresh process.

--backend vmap measures clients that train together (vectorised.py), --backend flower,nvflare,pfl other engines beside
ours (peers/run.py), each with the same training.

Appends one JSON line per repeat to --out, prints a Markdown table and writes it beside --out. --check: exit code 1 if
a goal is missed by more than a tenth; --quick: under a minute.
"""

import argparse
import copy
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _common import about, append, busy, lines, single_thread, spread, tell
from torch import nn

import polypfed as pf
from polypfed.federation import Event

CLIENTS, PER_ROUND, BATCH, LR = 100, 10, 10, 0.05
MODES: dict[str, dict[str, Any]] = {"polypfed": {}, "float32": {"reducer": pf.Mean(dtype="float32")}, "naive": {}}
ELSEWHERE = ("vmap", "flower", "nvflare", "pfl")  # measured by vectorised.py and peers/run.py


@dataclass(frozen=True)
class Case:
    """A model, how many images each client has, and the pairs of rounds in a repeat."""

    name: str
    images: int
    rounds: int
    goal: float | None


CASES = (
    Case("cnn", images=100, rounds=10, goal=1.05),
    Case("mlp", images=100, rounds=1, goal=1.25),
    Case("mlp", images=10, rounds=5, goal=None),
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
    if name == "small":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 120), nn.ReLU(), nn.Linear(120, 10))
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


class Plain:
    """Rounds of local training alone; calling it gives the CPU seconds of one."""

    def __init__(self, case: Case) -> None:
        self.module, self.data, self.draw = model(case.name), digits(case.images), np.random.default_rng(1)

    def __call__(self) -> float:
        begun = time.process_time()
        for client in self.draw.choice(CLIENTS, PER_ROUND, replace=False):
            local(self.module, self.data[client], self.draw)
        return time.process_time() - begun


class Naive(Plain):
    """The same with a copy of the model per client and a list of state dicts."""

    def __call__(self) -> float:
        begun, states = time.process_time(), []
        for client in self.draw.choice(CLIENTS, PER_ROUND, replace=False):
            own = copy.deepcopy(self.module)
            local(own, self.data[client], self.draw)
            states.append(own.state_dict())
        self.module.load_state_dict({k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]})
        return time.process_time() - begun


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


def pairs(case: Case, mode: str, rounds: int) -> list[tuple[float, float]]:
    """(CPU seconds of the round in this mode, of plain training), in turns."""
    plain = Plain(case)
    if mode == "naive":
        naive = Naive(case)
        return [(naive(), plain()) for _ in range(rounds)]
    found: list[tuple[float, float]] = []
    begun = 0.0

    def listen(event: Event) -> None:
        nonlocal begun
        if event.kind == "saved" and event.round:
            seconds = time.process_time() - begun
            found.append((seconds, plain()))
        if event.kind == "round":
            begun = time.process_time()

    strategy = pf.strategies.FedAvg(**MODES.get(mode, {}))
    fed = pf.Federation(clients=sites(case), strategy=strategy, per_round=PER_ROUND, evaluate="off")
    assert not fed.run(rounds, pf.backends.Local(vectorised=mode == "vmap"), listen=listen).failures
    return found


def measured(case: Case, mode: str, repeats: int) -> list[dict[str, Any]]:
    """One row per repeat; the first is warm-up and not among them."""
    before = os.getloadavg()[0]
    found = pairs(case, mode, (repeats + 1) * case.rounds)
    rows = []
    for repeat in range(1, repeats + 1):
        own, train = (sum(s) for s in zip(*found[repeat * case.rounds :][: case.rounds], strict=True))
        cpu_ms = {mode: round(1000 * own / case.rounds, 2), "train": round(1000 * train / case.rounds, 2)}
        rows.append(
            {"case": asdict(case), "mode": mode, "repeat": repeat, "cpu_ms": cpu_ms, "ratio": round(own / train, 4)}
        )
    load = [before, os.getloadavg()[0]]
    return [row | {"load": load} for row in rows]


def peak(count: int, per_round: int | None) -> float:
    """Peak memory in MB of this process after two rounds of the large model; run it in a process of its own."""
    fed = pf.Federation(clients=sites(CASES[2], count), per_round=per_round, evaluate="off")
    assert not fed.run(2, pf.backends.Local()).failures
    # Not getrusage: its maximum is inherited from the process that started this one.
    high = next(line for line in lines("/proc/self/status") if line.startswith("VmHWM"))
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


def ratios(rows: list[dict[str, Any]], case: Case, mode: str) -> list[float]:
    return [r["ratio"] for r in rows if r["case"] == asdict(case) and r["mode"] == mode]


def table(rows: list[dict[str, Any]], memory: list[dict[str, Any]]) -> str:
    """Markdown: the median ratio to "train" with its range, and peak memory."""
    modes = list(dict.fromkeys(r["mode"] for r in rows))
    out = [f"| model | local work | train, ms CPU | goal | {' | '.join(modes)} |", "|---" * (4 + len(modes)) + "|"]
    for case in CASES:
        own = [r for r in rows if r["case"] == asdict(case)]
        mark = " (busy)" if any(busy(r["load"]) for r in own) else ""
        train_ms = median([r["cpu_ms"]["train"] for r in own])
        work = f"{case.images} images in {case.images // BATCH} steps"
        found = " | ".join(spread(ratios(rows, case, mode)) for mode in modes)
        out.append(f"| {TITLES[case.name]} | {work} | {train_ms:.0f}{mark} | {case.goal or 'none'} | {found} |")
    out += ["", "| peak MB, MLP | " + " | ".join(f"{n} clients" for n in memory[0]["peak_mb"]) + " |"]
    out.append("|---" * (1 + len(memory[0]["peak_mb"])) + "|")
    for m in memory:
        out.append(f"| {m['per_round']} a round | " + " | ".join(f"{v:.0f}" for v in m["peak_mb"].values()) + " |")
    return "\n".join(out) + "\n"


def missed(rows: list[dict[str, Any]], memory: list[dict[str, Any]]) -> list[str]:
    """Goals missed by more than a tenth."""
    found = []
    for case in CASES:
        ratio = median(ratios(rows, case, "polypfed") or [0.0])
        if case.goal and ratio > 1.1 * case.goal:
            found.append(f"{case.name}, {case.images} images: {ratio:.3f}, the goal is {case.goal}")
    for m in memory:
        values = list(m["peak_mb"].values())
        if max(values) > 1.1 * values[0]:
            found.append(f"memory grows with the number of clients: {m['peak_mb']}")
    return found


def beside(chosen: list[str], given: argparse.Namespace) -> int:
    """What other scripts measure: clients trained together, and other engines."""
    import vectorised
    from peers import run

    out = ["--out", str(given.out), *(["--check"] if given.check else [])]
    code = vectorised.main([*out, "--repeats", str(2 if given.quick else given.repeats)]) if "vmap" in chosen else 0
    engines = ",".join(["train", "polypfed", *(b for b in chosen if b != "vmap")])
    return code if engines == "train,polypfed" else max(code, run.main([*out, "--backends", engines]))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--check", action="store_true")
    options.add_argument("--out", type=Path, default=Path("runs/bench/rounds.jsonl"))
    options.add_argument("--backend", default=",".join(["train", *MODES]), help=f"some of these, or of {ELSEWHERE}")
    options.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    single_thread()
    torch.set_num_threads(1)
    if given.peak:
        print(peak(*given.peak))
        return 0
    if chosen := [b for b in given.backend.split(",") if b in ELSEWHERE]:
        return beside(chosen, given)
    wanted = [mode for mode in MODES if mode in given.backend.split(",")]
    repeats, modes = (2, wanted[:1]) if given.quick else (given.repeats, wanted)
    rows = [row for case in CASES for mode in modes for row in measured(case, mode, repeats)]
    counts = (10, 100) if given.quick else (10, 100, 400)
    memory = [peaks(counts, everyone) for everyone in ((False,) if given.quick else (False, True))]
    where = about(
        "rounds", ("polypfed", "numpy", "torch"), clients=CLIENTS, per_round=PER_ROUND, batch=BATCH,
        threads=torch.get_num_threads(),
    )  # fmt: skip
    append(given.out, [where | row for row in [*rows, *memory]])
    tell(given.out, where, table(rows, memory))
    problems = missed(rows, memory)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if given.check and problems else 0


if __name__ == "__main__":
    sys.exit(main())
