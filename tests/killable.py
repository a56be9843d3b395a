"""A federation in a process of its own, to be killed: python -m tests.killable FOLDER ROUNDS [WORKERS [PAUSE]]"""

import builtins
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polypfed import Federation, History
from polypfed.backends import Local
from polypfed.core import files
from polypfed.federation import Event
from polypfed.strategies import Scaffold
from tests.problems import bits, scores, sites

SEED = 11
SCAFFOLD = Scaffold(eta=0.7)


def federation(pause: float = 0.0, strategy: Any = SCAFFOLD) -> Federation:
    """State at the server and at the sites, sampling, a best model: all that a resume has to bring back."""
    return Federation(
        clients=sites(5, pause=pause),
        strategy=strategy,
        per_round=3,
        seed=SEED,
        evaluate="matrix",
        keep_best="-gradient_norm",
    )


def go(
    folder: Path,
    rounds: int,
    workers: int = 1,
    pause: float = 0.0,
    strategy: Any = SCAFFOLD,
    listen: Callable[[Event], None] | None = None,
) -> History:
    """Begin or resume."""
    fed, backend = federation(pause, strategy), Local(workers)
    if (folder / "run.json").exists():
        return fed.resume(folder, rounds, backend, listen)
    return fed.run(rounds, backend, folder, listen)


def digest(history: History) -> list[Any]:
    best = history.best.tobytes().hex() if history.best is not None else ""
    return [bits(history).hex(), best, history.best_round, [list(s) for s in scores(history)]]


class HalfWritten:
    """A file of which only the first half of the last writing reached the disk."""

    def __init__(self, file: Any, tick: Callable[[Callable[[], Any]], None]) -> None:
        self._file, self._tick = file, tick

    def __enter__(self) -> "HalfWritten":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def writelines(self, parts: tuple[bytes, ...]) -> None:
        data = b"".join(parts)

        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._tick(half)
        self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return int(self._file.fileno())


def die_at(count: int) -> None:
    """SIGKILL this process at the count-th write, fsync or rename."""
    left = count

    def tick(before: Callable[[], Any] = lambda: None) -> None:
        nonlocal left
        left -= 1
        if not left:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ("fsync", "replace"):
        real = getattr(os, name)
        setattr(os, name, lambda *a, r=real: (tick(), r(*a))[1])
    files.open = lambda *a, **k: HalfWritten(builtins.open(*a, **k), tick)  # type: ignore[attr-defined]  # noqa: SIM115


def sweep(folder: Path, rounds: int, first: int, stride: int) -> list[str]:
    """Die at every stride-th point and resume each time; the points whose outcome differs from a straight run."""
    straight = digest(go(folder / "straight", rounds))
    problems, count, killed = [], first, True
    while killed:
        place = folder / str(count)
        child = os.fork()
        if not child:
            die_at(count)
            go(place, rounds)
            os._exit(0)
        killed = os.waitpid(child, 0)[1] == signal.SIGKILL
        if digest(go(place, rounds)) != straight:
            problems.append(f"point {count}: another outcome")
        if left := [p.name for p in place.rglob(".*.tmp")]:
            problems.append(f"point {count}: left behind {left}")
        count += stride
    return [f"points {count - first}", *problems]


if __name__ == "__main__":
    if sys.argv[1] == "sweep":
        print(json.dumps(sweep(Path(sys.argv[2]), *map(int, sys.argv[3:]))))
    else:
        rest = sys.argv[3:]
        go(Path(sys.argv[1]), int(sys.argv[2]), int(rest[0]) if rest else 1, float(rest[1]) if rest[1:] else 0.0)
