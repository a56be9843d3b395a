"""An NVFlare deployment over mutual TLS whose sites reach the server through a proxy that makes trouble.

python -m tests.live.nvflare.troubled SEEDS [RATE [FIRST]] prints a JSON line per seed.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from polypfed import History
from tests.live import troubled
from tests.live.chaos import Chaos
from tests.live.nvflare import study
from tests.live.nvflare.processes import Deployment, edit
from tests.live.troubled import DEADLINE, ROUNDS, STRATEGY
from tests.problems import without

NAMES = ["site-1", "site-2", "site-3"]


class Troubled(troubled.Troubled):
    """All of a site's processes share what the proxy does to it."""

    RATE = 0.005

    def __init__(self, folder: Path) -> None:
        self.deployment = Deployment(folder, NAMES)
        self.proxy = Chaos(self.deployment.port)
        for name in NAMES:
            path = self.deployment.kit(name) / "startup" / "fed_client.json"
            text, old = path.read_text(), f"localhost:{self.deployment.port}"
            assert old in text
            path.write_text(text.replace(old, f"localhost:{self.proxy.port}"))
        self.deployment.start_all()

    def prepare(self, run: str) -> None:
        edit(self.deployment, strategy=STRATEGY, quorum=2, deadline=DEADLINE, evaluate="off")

    def conduct(self, run: str) -> dict[str, Any]:
        return self.deployment.conduct(run, ROUNDS)

    def stop(self) -> None:
        """`conduct` has ended it."""

    def folder(self, run: str) -> Path:
        return self.deployment.run_folder(run)

    def expected(self, lost: Counter[tuple[str, int]]) -> History:
        return without(lost, ROUNDS, study.clients(NAMES), **study.settings(STRATEGY, evaluate="off"))


if __name__ == "__main__":
    troubled.main(Troubled)
