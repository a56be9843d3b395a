"""Processes killed and hung in the middle of a round of a real deployment."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.live.flower import study
from tests.live.flower.processes import Deployment
from tests.live.loopback import command, kill, until
from tests.live.sites import digest

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]
NAMES = ["a", "b", "c"]
DEADLINE = 40.0


@pytest.fixture
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deployment]:
    sites, server = request.param
    found = Deployment(tmp_path, NAMES, sites, **server)
    try:
        found.start_all()
        yield found
    finally:
        found.close()


def settings(rounds: int, quorum: int, strategy: str, **acts: tuple[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    sites = {name: {"act": act, "when": when} for name, (act, when) in acts.items()}
    return sites, {"strategy": strategy, "rounds": rounds, "quorum": quorum, "deadline": DEADLINE}


@pytest.mark.parametrize(
    "deployment",
    [settings(3, 3, "scaffold", a=("die", 1), b=("hang", 1), c=("pause", 2))],
    indirect=True,
    ids=[""],
)
def test_worker_and_superlink_are_lost_and_no_bit_is(deployment: Deployment) -> None:
    """Round 1: one worker dies, another hangs, too few are left, and all serve the second attempt.

    Round 2: the SuperLink is killed; its unit would start it again; ./run.sh goes on by itself.
    """
    run = deployment.start("server", "run.sh")
    until(lambda: (deployment.folder / "sites" / "c" / "began").exists(), 200)
    found = {(f["client"], f["round"], f["reason"]) for f in deployment.failures()}
    assert found == {("a", 1, "lost"), ("b", 1, "deadline")}
    deployment.stop("server/start.sh", signal.SIGKILL)
    time.sleep(2)
    deployment.start("server")
    assert run.wait(200) == 0, deployment.log("server", "run.sh")[-3000:]
    said = deployment.log("server", "run.sh")
    assert "round 1: too few updates" in said
    assert "resuming the run" in said
    assert f"model {digest(NAMES, 3, **study.settings('scaffold'))}" in said
    assert deployment.accepted() == {1: 3, 2: 3, 3: 3}


@pytest.mark.skipif("POLYPFED_LONG" not in os.environ, reason="two minutes of Flower's heartbeats; set POLYPFED_LONG")
@pytest.mark.parametrize(
    "deployment", [settings(6, 1, "fedavg", a=("pause", 1), b=("pause", 1))], indirect=True, ids=[""]
)
def test_a_killed_supernode_and_a_killed_clientapp_return(deployment: Deployment) -> None:
    run = deployment.start("server", "run.sh")
    for name in "ab":
        until(lambda n=name: (deployment.folder / "sites" / n / "began").exists(), 90)
    node = next(p for p in deployment.processes("sites/a/start.sh") if "flower-supernode" in command(p))
    app = next(p for p in deployment.processes("sites/b/start.sh") if "flwr-clientapp" in command(p))
    kill(node)
    kill(app)
    begun = monotonic()
    history = deployment.server / "run" / "history.jsonl"
    until(lambda: history.exists() and 1 in deployment.accepted(), DEADLINE + 30)
    assert monotonic() - begun < DEADLINE + 30
    assert run.wait(200) == 0
    accepted = deployment.accepted()
    assert accepted[1] == 1
    assert {f["client"] for f in deployment.failures()} == {"a", "b"}
    assert accepted[6] == 3, deployment.failures()  # both have served again
