"""A deployment as `deploy` leaves it: a plan runs at a site once its owner has approved it, and not before."""

import re
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256

import pytest

from polypfed.core import audit
from tests.live.nvflare import study
from tests.live.nvflare.processes import Deployment, edit
from tests.problems import bits, without

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(900)]
SITES = ["site-1", "site-2", "site-3"]
ROUNDS = 2


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("approval"), SITES, approve=True)
    try:
        made.start_all()
        yield made
    finally:
        assert made.close() == []


def waiting(deployment: Deployment, name: str) -> list[str]:
    return re.findall(r"^waiting: (sha256:[0-9a-f]{64})$", deployment.policy(name, "show"), re.MULTILINE)


def test_a_plan_waits_for_the_owners_and_runs_where_they_approve_it(deployment: Deployment) -> None:
    settings = {"strategy": "fedavg", "quorum": 2, "evaluate": "off"}
    edit(deployment, **settings)
    refused = deployment.conduct(rounds=ROUNDS)
    assert (refused["status"], refused["error"]) == ("failed", "QuorumError")
    assert "round 1: 0 accepted updates, the quorum is 2" in refused["detail"]
    failures = deployment.lines("failures.jsonl")
    assert {(f["client"], f["reason"]) for f in failures} == {(name, "policy") for name in SITES}
    plans = {tuple(waiting(deployment, name)) for name in SITES}
    assert len(plans) == 1, "the same plan waits at all"
    ((plan,),) = plans
    assert all(f"the plan is not approved: polypfed policy approve {plan}" in f["detail"] for f in failures)
    for name in SITES:
        state = deployment.kit(name) / "state"
        asked = [e["facts"] for e in audit.entries(next(state.rglob("audit.jsonl"))) if e["event"] == "fit"]
        assert asked
        assert {f["reason"] for f in asked} == {"policy"}
        assert not list(state.rglob("sites/*/state/*")), "nothing was trained"

    for name in ("site-1", "site-2"):
        assert f"approved: {plan}" in deployment.policy(name, "approve", plan)
        assert waiting(deployment, name) == []
    done = deployment.conduct(rounds=ROUNDS)
    lost = Counter({("site-3", number): 1 for number in range(1, ROUNDS + 1)})
    here = without(lost, ROUNDS, study.clients(SITES), **study.settings(**settings))
    assert done == {"status": "completed", "rounds": ROUNDS, "sha256": sha256(bits(here)).hexdigest()}
    later = deployment.lines("failures.jsonl")[len(failures) :]
    assert {(f["client"], f["reason"]) for f in later} == {("site-3", "policy")}
    assert deployment.accepted() == dict.fromkeys(range(1, ROUNDS + 1), 2)


def test_another_plan_is_another_approval(deployment: Deployment) -> None:
    """What two owners have approved is this strategy with these settings, not the server."""
    (plan,) = waiting(deployment, "site-3")
    deployment.policy("site-3", "approve", plan)
    edit(deployment, strategy="fedadam", quorum=2, evaluate="off")
    result = deployment.conduct("second", rounds=1)
    assert (result["status"], result["error"]) == ("failed", "QuorumError")
    failures = deployment.lines("failures.jsonl", "second")
    assert {(f["client"], f["reason"]) for f in failures} == {(name, "policy") for name in SITES}
    assert all(waiting(deployment, name) not in ([], [plan]) for name in SITES)
