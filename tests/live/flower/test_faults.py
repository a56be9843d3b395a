"""Processes killed and hung in the middle of a round of a real deployment."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from polypfed import Federation, History, Task
from polypfed.backends.flower.site import SUPERNODE
from polypfed.core.messages import Reply
from tests.live.flower import study
from tests.live.flower.processes import Deployment
from tests.live.loopback import command, kill, until
from tests.problems import Scripted, absent, bits, honest

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]
NAMES = ["a", "b", "c"]
DEADLINE = 40.0
Script = Callable[[str, Task, Reply], Iterator[Reply]]


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


def riding(
    rounds: int, deadline: float, strategy: str = "scaffold", **acts: tuple[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `settings`; the scores of a round come with the answers of the next."""
    sites, server = settings(rounds, 2, strategy, **acts)
    return sites, server | {"evaluate": "global", "deadline": deadline}


def here(rounds: int, strategy: str, script: Script = honest) -> History:
    """The same federation in this process."""
    given = study.settings(strategy, evaluate="global")
    return Federation(clients=study.clients(NAMES), **given).run(rounds, Scripted(script))


def scored(rows: list[dict[str, Any]]) -> set[tuple[int, str, float]]:
    return {(r["round"], r["site"], r["value"]) for r in rows if r["metric"] == "gradient_norm" and r["site"]}


@pytest.mark.parametrize(
    "deployment",
    [riding(3, DEADLINE, a=("die", 1), b=("hang", 1), c=("pause", 2))],
    indirect=True,
    ids=[""],
)
def test_worker_and_superlink_are_lost_and_no_bit_is(deployment: Deployment) -> None:
    """Round 1: one worker dies, another hangs, too few are left, and all serve the second attempt.

    Round 2: the SuperLink is killed, and with it the messages that carry round 1's scores; its unit would start it
    again; ./run.sh goes on by itself, and scores round 1 first.
    """
    run = deployment.start("server", "run.sh")
    until(lambda: (deployment.folder / "sites" / "c" / "began").exists(), 200)
    found = {(f["client"], f["round"], f["reason"]) for f in deployment.failures()}
    assert found == {("a", 1, "lost"), ("b", 0, "deadline"), ("b", 1, "deadline")}  # b's score was in that message
    deployment.stop("server/start.sh", signal.SIGKILL)
    time.sleep(2)
    deployment.start("server")
    assert run.wait(360) == 0, deployment.log("server", "run.sh")[-3000:]
    said = deployment.log("server", "run.sh")
    assert "round 1: too few updates" in said
    assert "resuming the run" in said
    straight = here(3, "scaffold")
    assert f"model {sha256(bits(straight)).hexdigest()}" in said
    assert deployment.accepted() == {1: 3, 2: 3, 3: 3}
    assert scored(deployment.history()) == {s for s in scored(straight.rows) if s[:2] != (0, "b")}
    assert {r for r, _, _ in scored(straight.rows)} == {0, 1, 2, 3}


@pytest.mark.skipif("POLYPFED_LONG" not in os.environ, reason="a minute of Flower's heartbeats; set POLYPFED_LONG")
@pytest.mark.parametrize("deployment", [riding(2, 20.0, "fedavg", b=("pause", 2))], indirect=True, ids=[""])
def test_a_message_that_is_lost_costs_both_of_its_tasks_and_no_more(deployment: Deployment) -> None:
    """Round 2: a ClientApp is killed while it holds a round's scoring and the next round's training."""
    run = deployment.start("server", "run.sh")
    until(lambda: (deployment.folder / "sites" / "b" / "began").exists(), 120)
    kill(next(p for p in deployment.processes("sites/b/start.sh") if "flwr-clientapp" in command(p)))
    assert run.wait(120) == 0, deployment.log("server", "run.sh")[-3000:]

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield absent(name, task) if (name, task.round) == ("b", 2) else reply

    expected = here(2, "fedavg", script)
    assert f"model {sha256(bits(expected)).hexdigest()}" in deployment.log("server", "run.sh")
    found = [(f["client"], f["round"], f["reason"]) for f in deployment.failures()]
    assert found[:2] == [("b", 1, "deadline"), ("b", 2, "deadline")]
    assert set(found[2:]) <= {("b", 2, "deadline")}  # Flower may not have noticed yet, when round 2 is scored
    lost = {("b", 1)} | {(name, number) for name, number, _ in found[2:]}
    assert scored(deployment.history()) == {s for s in scored(expected.rows) if (s[1], s[0]) not in lost}


@pytest.mark.skipif("POLYPFED_LONG" not in os.environ, reason="two minutes of Flower's heartbeats; set POLYPFED_LONG")
@pytest.mark.parametrize(
    "deployment", [settings(6, 1, "fedavg", a=("pause", 1), b=("pause", 1))], indirect=True, ids=[""]
)
def test_a_killed_supernode_and_a_killed_clientapp_return(deployment: Deployment) -> None:
    run = deployment.start("server", "run.sh")
    for name in "ab":
        until(lambda n=name: (deployment.folder / "sites" / n / "began").exists(), 90)
    node = next(p for p in deployment.processes("sites/a/start.sh") if SUPERNODE in command(p))
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
