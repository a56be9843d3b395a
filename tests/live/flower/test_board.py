"""`polypfed site run` on a board: one service that detects, and trains in a federation over TLS, on one machine."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boards import table
from tests.live.flower.processes import Deployment
from tests.live.loopback import alive, command, until
from tests.runtimes import need_device

need_device()
pytest.importorskip("cryptography", reason="install polypfed[edge]")
pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    found = Deployment(tmp_path, ["a", "b"], rounds=2)
    found.edit("server/server.toml", "tests.live.flower.study:federation", "tests.boards:federation")
    for name in found.names:
        found.edit(f"sites/{name}/site.toml", "tests.live.flower.study:client", "tests.boards:client")
    board = found.folder / "sites" / "a"
    (board / "site.toml").write_text((board / "site.toml").read_text() + table(board))
    try:
        found.start_all()
        yield found
    finally:
        found.close()


def test_it_detects_with_what_it_trains(deployment: Deployment) -> None:
    outcome = deployment.run()
    assert (outcome["status"], outcome["rounds"]) == ("completed", 2)
    place = deployment.folder / "sites" / "a" / "state" / "device"

    def status() -> dict:
        return json.loads((place / "status.json").read_text()) if (place / "status.json").exists() else {}

    newest = f"round-0002-{outcome['sha256'][:8]}"
    until(lambda: status().get("model") == newest, 30)
    assert sorted(p.stem for p in place.glob("models/*.safetensors"))[-1] == newest
    detectors = [p for p in deployment.processes("sites/a/start.sh") if "polypfed.backends.device" in command(p)]
    assert len(detectors) == 1
    os.kill(detectors[0], signal.SIGKILL)
    seen = status()["at"]
    until(lambda: status()["at"] > seen + 1 and status()["model"] == newest, 30)
    everything = deployment.processes("sites/a/start.sh")
    deployment.stop("sites/a/start.sh")
    until(lambda: not [p for p in everything if alive(p)], 10)
