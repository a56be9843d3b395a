"""A deployment over TLS whose SuperNodes reach the SuperLink through a proxy that makes trouble.

python -m tests.live.flower.troubled SEEDS [RATE [FIRST]] prints a JSON line per seed.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from polypfed import History
from tests.live import troubled
from tests.live.chaos import Chaos
from tests.live.flower import study
from tests.live.flower.processes import Deployment
from tests.live.troubled import DEADLINE, ROUNDS, STRATEGY
from tests.problems import without

NAMES = ["a", "b", "c"]
PATIENCE = 300.0


class Troubled(troubled.Troubled):
    """A node has a connection of its own, and a cut is the end of it."""

    RATE = 0.01

    def __init__(self, folder: Path) -> None:
        sites = {name: {} for name in NAMES}
        self.deployment = Deployment(folder, NAMES, sites, strategy=STRATEGY, rounds=ROUNDS)
        self.proxy = Chaos(self.deployment.port)
        for name in NAMES:
            self.deployment.edit(f"sites/{name}/site.toml", f":{self.deployment.port}", f":{self.proxy.port}")
        self.deployment.start_all()

    def prepare(self, run: str) -> None:
        self.deployment.serve(run, strategy=STRATEGY, rounds=ROUNDS, quorum=2, deadline=DEADLINE)

    def conduct(self, run: str) -> dict[str, Any]:
        return self.deployment.run(PATIENCE)

    def stop(self) -> None:
        self.deployment.stop("server/run.sh")

    def folder(self, run: str) -> Path:
        return self.deployment.directory

    def expected(self, lost: Counter[tuple[str, int]]) -> History:
        return without(lost, ROUNDS, study.clients(NAMES), **study.settings(STRATEGY, quorum=2))


if __name__ == "__main__":
    troubled.main(Troubled)
