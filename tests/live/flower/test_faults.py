"""Processes killed and hung in the middle of a round of a real deployment."""

import hashlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from polypfed import Federation
from polypfed.backends import Local
from tests.live.flower import study
from tests.live.flower.processes import Deployment, command, kill, until

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]
NAMES = ["a", "b", "c"]
DEADLINE = 25.0


@pytest.fixture
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deployment]:
    sites, server = request.param
    found = Deployment(tmp_path, NAMES, sites, **server)
    try:
        found.start_all()
        yield found
    finally:
        found.close()


def local(strategy: str, rounds: int) -> str:
    model = Federation(clients=study.clients(NAMES), **study.settings(strategy)).run(rounds, Local()).model
    assert model is not None
    return hashlib.sha256(model.tobytes()).hexdigest()


def pause(when: int) -> dict[str, object]:
    return {"act": "pause", "when": when}


@pytest.mark.parametrize(
    "deployment",
    [
        (
            {"a": {"act": "die", "when": 1}, "b": {"act": "hang", "when": 1}},
            {"strategy": "scaffoldsketch", "rounds": 2, "quorum": 1, "deadline": DEADLINE},
        )
    ],
    indirect=True,
    ids=["die-and-hang"],
)
def test_a_worker_that_dies_and_one_that_hangs_cost_their_round_only(deployment: Deployment) -> None:
    assert deployment.run()["status"] == "completed"
    found = {(f["client"], f["round"], f["reason"]) for f in deployment.failures()}
    assert found == {("a", 1, "lost"), ("b", 1, "deadline")}
    assert deployment.accepted() == {1: 1, 2: 3}


@pytest.mark.parametrize(
    "deployment",
    [
        (
            {"a": pause(1), "b": pause(1)},
            {"strategy": "fedavg", "rounds": 6, "quorum": 1, "deadline": DEADLINE},
        )
    ],
    indirect=True,
    ids=["node-and-clientapp"],
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


@pytest.mark.parametrize(
    "deployment",
    [({"a": pause(2)}, {"strategy": "scaffoldsketch", "rounds": 3, "quorum": 3, "deadline": 60.0})],
    indirect=True,
    ids=["superlink"],
)
def test_a_killed_superlink_loses_no_completed_round(deployment: Deployment) -> None:
    """Its unit would start it again; ./run.sh goes on by itself, to the bits of an undisturbed run."""
    run = deployment.start("server", "run.sh")
    until(lambda: (deployment.folder / "sites" / "a" / "began").exists(), 90)
    deployment.stop("server/start.sh", signal.SIGKILL)
    time.sleep(2)
    deployment.start("server")
    assert run.wait(200) == 0, deployment.log("server", "run.sh")[-3000:]
    said = deployment.log("server", "run.sh")
    assert "resuming the run" in said
    assert f"model {local('scaffoldsketch', 3)}" in said
    assert deployment.accepted() == {1: 3, 2: 3, 3: 3}
