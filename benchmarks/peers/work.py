"""What every engine does in a round: the same clients, in the same order, with the same data and draws.

Each driver is a process: python -m peers.NAME MODEL ROUNDS CONFIGURATION [CLIENTS]. It calls `mark` when a round ends,
and leaves its final weights for the comparison. The federation is 100 clients of which 10 train in a round, or
CLIENTS that all do.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import torch
from rounds import BATCH, CLIENTS, LR, PER_ROUND, Case, digits, local, model
from torch import nn

from polypfed.core.seeds import derive, generator

CASES = {
    "cnn": Case("cnn", images=100, rounds=0, goal=None),
    "small": Case("small", images=100, rounds=0, goal=None),
    "big": Case("mlp", images=10, rounds=0, goal=None),
}
FOLDER = "PEERS_FOLDER"  # environment: where a driver leaves its marks; by it the processes of a tree are known too


@dataclass(frozen=True)
class Job:
    """What a driver was asked for."""

    model: str
    rounds: int
    configuration: str
    clients: int

    @property
    def per_round(self) -> int:
        return PER_ROUND if self.clients == CLIENTS else self.clients

    def cohort(self, number: int) -> list[int]:
        """Who trains in round `number`, from 1: whom polypfed draws with seed 0."""
        drawn = sorted(range(self.clients), key=lambda i: derive(0, "cohort", number, 0, name(i)))
        return sorted(drawn[: self.per_round])


def asked() -> Job:
    """From the command line; one thread from here on."""
    torch.set_num_threads(1)
    case, rounds, configuration, *clients = sys.argv[1:]
    return Job(case, int(rounds), configuration, int(clients[0]) if clients else CLIENTS)


def name(client: int) -> str:
    return f"c{client:03d}"


@cache
def resident(case: str) -> nn.Module:
    """One model per process, at the common initial weights."""
    torch.set_num_threads(1)
    return model(CASES[case].name)


@cache
def data(case: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return digits(CASES[case].images)


def train(case: str, number: int, client: int) -> int:
    """The training function: an epoch of `resident(case)` on this client's data; returns the examples."""
    order = generator(derive(0, "client", number, name(client)), "order")
    local(resident(case), data(case)[client], order)
    return len(data(case)[client][0])


def cpu_seconds() -> float:
    """Of this process, and of all started with its folder in their environment, ended children included."""
    own, folder = os.times(), os.environ[FOLDER]
    total = sum(own[:4])  # read first: looking at the others costs time too
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(FOLDER) == folder:
                total += sum(process.cpu_times()[:4])
        except psutil.Error:
            pass
    return total


def mark(event: str, number: int = 0, tree: bool = False) -> None:
    """Note the time; with `tree` the CPU seconds of the whole tree too."""
    row = {"event": event, "round": number, "at": time.monotonic(), "cpu": cpu_seconds() if tree else None}
    with open(Path(os.environ[FOLDER]) / "marks.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def over(number: int, rounds: int) -> None:
    """Round `number` of `rounds` is over; what the first costs is not counted with the others."""
    mark("round", number, number in (1, rounds))


def leave(weights: dict[str, torch.Tensor] | np.ndarray) -> None:
    """Keep the final model, (P,), for the comparison."""
    if isinstance(weights, dict):
        weights = np.concatenate([np.asarray(w, np.float32).ravel() for w in weights.values()])
    np.save(Path(os.environ[FOLDER]) / "final.npy", weights)


__all__ = ["BATCH", "CLIENTS", "LR", "Job", "asked", "data", "leave", "mark", "name", "over", "resident", "train"]
