"""An NVFlare deployment over mutual TLS whose sites reach the server through a proxy that makes trouble.

python -m tests.live.nvflare.troubled SEEDS [RATE [FIRST]] prints a JSON line per seed.
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
from tests.live.nvflare import study
from tests.live.nvflare.processes import Deployment, edit
from tests.problems import bits, without

NAMES = ["site-1", "site-2", "site-3"]
ROUNDS, STRATEGY, DEADLINE, RATE = 2, "scaffold", 30.0, 0.005


class Troubled:
    """The deployment, calm at first."""

    def __init__(self, folder: Path) -> None:
        self.deployment = Deployment(folder, NAMES)
        self.proxy = Chaos(self.deployment.port)
        for name in NAMES:
            path = self.deployment.kit(name) / "startup" / "fed_client.json"
            text, old = path.read_text(), f"localhost:{self.deployment.port}"
            assert old in text
            path.write_text(text.replace(old, f"localhost:{self.proxy.port}"))
        self.deployment.start_all()

    def close(self) -> None:
        self.deployment.close()
        self.proxy.close()

    def run(self, seed: int, rate: float = RATE) -> dict[str, Any]:
        """As `tests.live.flower.troubled.Troubled.run`."""
        name, begun, result = f"seed-{seed}", monotonic(), dict[str, Any]()
        edit(self.deployment, strategy=STRATEGY, quorum=2, deadline=DEADLINE, evaluate="off")
        self.proxy.unrest(seed, rate)
        try:
            result = self.deployment.conduct(name, ROUNDS)
            ended = self._judged(name, result)
        except subprocess.TimeoutExpired:
            ended = "hung"
        except FileNotFoundError:
            ended = "no result"
        self.proxy.calm()
        failures = Counter(f["reason"] for f in self.deployment.lines("failures.jsonl", name))
        row = {"seed": seed, "ended": ended, "seconds": round(monotonic() - begun), "failures": dict(failures)}
        seen = {what: self.proxy.seen[what] for what in ("pieces", *FAULTS)}
        return row | {"error": result.get("error", ""), "detail": result.get("detail", "")[:200], **seen}

    def _judged(self, name: str, result: dict[str, Any]) -> str:
        if result["status"] == "failed":
            return "failed" if result["error"].endswith("Error") else "untyped"
        lost = missing(self.deployment.run_folder(name) / "audit.jsonl")
        settings = study.settings(STRATEGY, evaluate="off")
        expected = without(lost, ROUNDS, study.clients(NAMES), **settings)
        if result["sha256"] != sha256(bits(expected)).hexdigest():
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
