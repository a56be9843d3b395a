"""Deployments whose sites reach the server through a proxy that makes trouble: what those of both engines share."""

import json
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

from polypfed import History
from tests.live.chaos import FAULTS, Chaos, missing
from tests.problems import bits

ROUNDS, STRATEGY, DEADLINE = 2, "scaffold", 30.0


class Troubled(ABC):
    """The deployment, calm at first.

    Attributes:
        RATE: of the pieces of data, in either direction, that meet a fault.
    """

    RATE: ClassVar[float]
    deployment: Any
    proxy: Chaos

    @abstractmethod
    def prepare(self, run: str) -> None:
        """Set the server for a run of this name."""

    @abstractmethod
    def conduct(self, run: str) -> dict[str, Any]:
        """Run it; the server's own word of how it ended."""

    @abstractmethod
    def stop(self) -> None:
        """End a run that hangs."""

    @abstractmethod
    def folder(self, run: str) -> Path:
        """Where the server keeps it."""

    @abstractmethod
    def expected(self, lost: Counter[tuple[str, int]]) -> History:
        """The same federation here, without these updates."""

    def close(self) -> None:
        self.deployment.close()
        self.proxy.close()

    def run(self, seed: int, rate: float | None = None) -> dict[str, Any]:
        """A federation of its own under that seed's trouble; what came of it.

        "same": the model of an undisturbed run. "without": the model of the run in which the failures that it names
        are all that is missing. "failed": it ended with a typed error. Anything else is a fault: "hung", "no result",
        "untyped", "other model".
        """
        name, result = f"seed-{seed}", dict[str, Any]()
        self.prepare(name)
        self.proxy.unrest(seed, self.RATE if rate is None else rate)
        begun = monotonic()
        try:
            result = self.conduct(name)
            ended = self._judged(name, result)
        except subprocess.TimeoutExpired:
            self.stop()
            ended = "hung"
        except FileNotFoundError:
            ended = "no result"
        self.proxy.calm()
        row = {"seed": seed, "ended": ended, "seconds": round(monotonic() - begun), "failures": self._failures(name)}
        row |= {"error": result.get("error", ""), "detail": result.get("detail", "")[:200]}
        return row | {what: self.proxy.seen[what] for what in ("pieces", *FAULTS)}

    def _failures(self, run: str) -> dict[str, int]:
        path = self.folder(run) / "failures.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return dict(Counter(json.loads(line)["reason"] for line in lines))

    def _judged(self, run: str, result: dict[str, Any]) -> str:
        if result["status"] == "failed":
            return "failed" if result.get("code", 1) and result["error"].endswith("Error") else "untyped"
        lost = missing(self.folder(run) / "audit.jsonl")
        if result["sha256"] != sha256(bits(self.expected(lost))).hexdigest() or result.get("code"):
            return "other model"
        return "without" if lost else "same"


def main(make: Callable[[Path], Troubled]) -> None:
    """`SEEDS [RATE [FIRST]]` on the command line; prints a JSON line per seed."""
    given = sys.argv[1:]
    seeds, rate = int(given[0]), float(given[1]) if given[1:] else None
    first = int(given[2]) if given[2:] else 0
    with tempfile.TemporaryDirectory() as folder:
        troubled = make(Path(folder))
        try:
            for seed in range(first, first + seeds):
                print(json.dumps(troubled.run(seed, rate)), flush=True)
        finally:
            troubled.close()
