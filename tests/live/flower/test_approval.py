"""A deployment as `deploy` leaves it: a plan runs at a site once its owner has approved it, and not before."""

import re
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256

import pytest

from polypfed.core import audit
from tests.live.flower import study
from tests.live.flower.processes import Deployment
from tests.problems import bits, without

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(900)]
NAMES = ["a", "b", "c"]
ROUNDS, PATIENCE = 2, 300.0


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("approval")
    found = Deployment(folder, NAMES, approve=True, strategy="scaffold", rounds=ROUNDS, quorum=2)
    try:
        found.start_all()
        yield found
    finally:
        found.close()


def waiting(deployment: Deployment, name: str) -> list[str]:
    return re.findall(r"^waiting: (sha256:[0-9a-f]{64})$", deployment.policy(name, "show"), re.MULTILINE)


def test_a_plan_waits_for_the_owners_and_runs_where_they_approve_it(deployment: Deployment) -> None:
    refused = deployment.run(PATIENCE)
    assert (refused["status"], refused["error"]) == ("failed", "QuorumError")
    assert refused["code"] == 3
    assert "round 1: 0 accepted updates, the quorum is 2" in refused["detail"]
    shown = deployment.log("server", "run.sh")
    assert "round 1: 0 accepted updates, the quorum is 2" in shown
    assert "Traceback" not in shown
    failures = deployment.failures()
    assert {(f["client"], f["reason"]) for f in failures} == {(name, "policy") for name in NAMES}
    plans = {tuple(waiting(deployment, name)) for name in NAMES}
    assert len(plans) == 1, "the same plan waits at all"
    ((plan,),) = plans
    assert all(f"the plan is not approved: polypfed policy approve {plan}" in f["detail"] for f in failures)
    for name in NAMES:
        state = deployment.folder / "sites" / name / "state"
        asked = [e["facts"] for e in audit.entries(next(state.rglob("audit.jsonl"))) if e["event"] == "fit"]
        assert asked
        assert {(f["reason"], f"sha256:{f['plan'].removeprefix('sha256:')}") for f in asked} == {("policy", plan)}
        assert not list(state.glob("sites/*/state/*")), "nothing was trained"

    for name in ("a", "b"):
        assert f"approved: {plan}" in deployment.policy(name, "approve", plan)
        assert waiting(deployment, name) == []
    done = deployment.run(PATIENCE)
    lost = Counter({("c", number): 1 for number in range(1, ROUNDS + 1)})
    here = without(lost, ROUNDS, study.clients(NAMES), **study.settings("scaffold"))
    assert done == {"status": "completed", "rounds": ROUNDS, "sha256": sha256(bits(here)).hexdigest(), "code": 0}
    later = deployment.failures()[len(failures) :]
    assert {(f["client"], f["reason"]) for f in later} == {("c", "policy")}
    assert deployment.accepted() == dict.fromkeys(range(1, ROUNDS + 1), 2)


def test_another_plan_is_another_approval(deployment: Deployment) -> None:
    """What a and b have approved is this strategy with these settings, not the server."""
    (plan,) = waiting(deployment, "c")
    deployment.policy("c", "approve", plan)
    deployment.serve("second", strategy="fedadam", rounds=1, quorum=2)
    result = deployment.run(PATIENCE)
    assert (result["status"], result["error"], result["code"]) == ("failed", "QuorumError", 3)
    assert {(f["client"], f["reason"]) for f in deployment.failures()} == {(name, "policy") for name in NAMES}
    assert all(waiting(deployment, name) not in ([], [plan]) for name in NAMES)
