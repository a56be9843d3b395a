"""A deployment over TLS whose SuperNodes reach the SuperLink through a proxy that makes trouble.

python -m tests.live.flower.troubled SEEDS [RATE [FIRST]] prints a JSON line per seed.
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

from tests.live.chaos import FAULTS, Chaos, missing
from tests.live.flower import study
from tests.live.flower.processes import Deployment
from tests.problems import bits, without

NAMES = ["a", "b", "c"]
ROUNDS, STRATEGY = 2, "scaffold"
DEADLINE, PATIENCE = 30.0, 300.0
RATE = 0.01
"""Of the pieces of data, in either direction. A node has a connection of its own, and a cut is the end of it."""


class Troubled:
    """The deployment, calm at first."""

    def __init__(self, folder: Path) -> None:
        sites = {name: {} for name in NAMES}
        self.deployment = Deployment(folder, NAMES, sites, strategy=STRATEGY, rounds=ROUNDS)
        self.proxy = Chaos(self.deployment.port)
        for name in NAMES:
            self.deployment.edit(f"sites/{name}/site.toml", f":{self.deployment.port}", f":{self.proxy.port}")
        self.deployment.start_all()

    def close(self) -> None:
        self.deployment.close()
        self.proxy.close()

    def run(self, seed: int, rate: float = RATE) -> dict[str, Any]:
        """A federation of its own under that seed's trouble; what came of it.

        "same": the model of an undisturbed run. "without": the model of the run in which the failures that it names
        are all that is missing. "failed": it ended with a typed error. Anything else is a fault: "hung", "other model".
        """
        self.deployment.serve(f"seed-{seed}", strategy=STRATEGY, rounds=ROUNDS, quorum=2, deadline=DEADLINE)
        self.proxy.unrest(seed, rate)
        begun = monotonic()
        try:
            result = self.deployment.run(PATIENCE)
            ended = self._judged(result)
        except subprocess.TimeoutExpired:
            self.deployment.stop("server/run.sh")
            result, ended = {}, "hung"
        self.proxy.calm()
        failures = Counter(f["reason"] for f in self.deployment.failures())
        seen = {name: self.proxy.seen[name] for name in ("pieces", *FAULTS)}
        row = {"seed": seed, "ended": ended, "seconds": round(monotonic() - begun), "failures": dict(failures)}
        return row | {"error": result.get("error", ""), "detail": result.get("detail", "")[:200], **seen}

    def _judged(self, result: dict[str, Any]) -> str:
        if result["status"] == "failed":
            return "failed" if result["code"] and result["error"].endswith("Error") else "untyped"
        lost = missing(self.deployment.directory / "audit.jsonl")
        settings = study.settings(STRATEGY, quorum=2)
        expected = without(lost, ROUNDS, study.clients(NAMES), **settings)
        if result["sha256"] != sha256(bits(expected)).hexdigest() or result["code"]:
            return "other model"
        return "without" if lost else "same"


if __name__ == "__main__":
    seeds, rate, first = int(sys.argv[1]), float([*sys.argv, RATE][2]), int([*sys.argv, RATE, 0][3])
    with tempfile.TemporaryDirectory() as folder:
        troubled = Troubled(Path(folder))
        try:
            for seed in range(first, first + seeds):
                print(json.dumps(troubled.run(seed, rate)), flush=True)
        finally:
            troubled.close()
