"""SIGKILL at moments that nobody chose: python -m tests.strikes server|clients FOLDER KILLS [SEED]

`server` kills the process that runs the federation, and starts it again, until so many kills have struck. `clients`
kills worker processes while the federation goes on. Both say what they found as JSON, problems included.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any

from polypfed import Federation
from polypfed.backends import Local
from polypfed.core import checkpoint as checkpoints
from polypfed.federation import Event
from polypfed.strategies import FedAdam, FedAvg, FedDyn, Scaffold
from tests.killable import digest, go
from tests.problems import bits, sites, without

STRATEGIES = {"fedavg": FedAvg(), "fedadam": FedAdam(), "feddyn": FedDyn(), "scaffold": Scaffold(eta=0.7)}
ROUNDS, PAUSE = 6, 0.004
DEADLINE, SPARE = 20.0, 5.0
_WHERE = {"round": "training", "fit": "collecting", "evaluate": "scoring or writing", "saved": "behind a round"}


class Marks:
    """What a process says of its progress through a pipe, which outlives it."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def __call__(self, event: Event) -> None:
        os.write(self._write, f"{event.kind} {event.round}\n".encode())

    def close(self) -> list[list[str]]:
        """All marks, once the other process has ended."""
        os.close(self._write)
        with open(self._read, "rb") as file:
            return [line.split() for line in file.read().decode().splitlines() if line.count(" ") == 1]


def struck(folder: Path, strategy: Any, after: float) -> tuple[bool, list[list[str]]]:
    """The run goes on in a process of its own, which is killed after so many seconds; False if it was done before."""
    marks = Marks()
    child = os.fork()
    if not child:
        go(folder, ROUNDS, pause=PAUSE, strategy=strategy, listen=marks)
        os._exit(0)
    end, done, status = monotonic() + after, 0, 0
    while not done and monotonic() < end:
        time.sleep(0.001)
        done, status = os.waitpid(child, os.WNOHANG)
    if not done:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if status not in (0, signal.SIGKILL):
        raise RuntimeError(f"the run ended with {status}")
    return status == signal.SIGKILL, marks.close()


def server(folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """So many kills over runs of four strategies in turn; each run is taken up again until it is complete."""
    draw, found, where = random.Random(seed), dict[str, Any](kills=0, runs=0, lost_rounds=0, other_bits=0), Counter()
    straight = dict[str, tuple[float, list[Any]]]()
    for name, strategy in STRATEGIES.items():
        begun = monotonic()
        straight[name] = (0.0, digest(go(folder / name, ROUNDS, pause=PAUSE, strategy=strategy)))
        straight[name] = (monotonic() - begun, straight[name][1])
    while found["kills"] < kills:
        name = list(STRATEGIES)[found["runs"] % len(STRATEGIES)]
        span, expected = straight[name]
        place, killed = folder / "struck", True
        while killed:
            killed, marks = struck(place, STRATEGIES[name], draw.uniform(0, span))
            saved = max((int(r) for kind, r in marks if kind == "saved"), default=-1)
            kept = checkpoints.load(place / "checkpoint").round if checkpoints.exists(place / "checkpoint") else -1
            found["kills"] += killed
            found["lost_rounds"] += max(0, saved - kept)
            if killed:
                where[_WHERE[marks[-1][0]] if marks else "starting"] += 1
        found["other_bits"] += digest(go(place, ROUNDS, pause=PAUSE, strategy=STRATEGIES[name])) != expected
        found["runs"] += 1
        shutil.rmtree(place)
    return {**found, "where": dict(sorted(where.items()))}


class Killer(threading.Thread):
    """Kills a child of this process now and then, until it is told to stop."""

    def __init__(self, draw: random.Random, kills: int) -> None:
        super().__init__(daemon=True)
        self.draw, self.left, self.over = draw, kills, threading.Event()

    def run(self) -> None:
        while self.left and not self.over.wait(self.draw.uniform(0, 1.5)):
            if children := sorted(p.pid for p in multiprocessing.active_children() if p.pid):
                os.kill(self.draw.choice(children), signal.SIGKILL)
                self.left -= 1


def clients(folder: Path, kills: int, seed: int = 0, workers: int = 2) -> dict[str, Any]:
    """So many kills of worker processes; afterwards the same run without a kill, the lost updates left out of it."""
    found = dict[str, Any](kills=0, rounds=0, lost_updates=0, beyond_deadline=0, other_bits=0, other_reasons=0)
    while found["kills"] < kills:
        strategy = list(STRATEGIES.values())[found["kills"] % len(STRATEGIES)]
        settings = {"strategy": strategy, "quorum": 1, "evaluate": "off", "deadline": DEADLINE, "retries": 5}
        rounds, place = 12, folder / str(found["kills"])
        killer = Killer(random.Random(seed + found["kills"]), kills - found["kills"])
        killer.start()
        history = Federation(clients=sites(4, pause=0.05), **settings).run(rounds, Local(workers), place)
        killer.over.set()
        killer.join()
        found["kills"] = kills - killer.left
        lost = Counter((f.client, f.round) for f in history.failures)
        found["rounds"] += rounds
        found["lost_updates"] += len(history.failures)
        found["other_reasons"] += sum(f.reason != "lost" for f in history.failures)
        found["beyond_deadline"] += sum(s > DEADLINE + SPARE for s in history.values("round_s").values())
        found["other_bits"] += bits(history) != bits(without(lost, rounds, sites(4), **settings))
        if killer.left == kills:
            raise RuntimeError("no kill struck")
    return found


if __name__ == "__main__":
    what, at, count, *rest = sys.argv[1:]
    done = {"server": server, "clients": clients}[what](Path(at), int(count), int(rest[0]) if rest else 0)
    print(json.dumps(done))
