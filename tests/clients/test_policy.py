"""A site's policy: refused before anything is done, with the reason "policy"; and what is approved runs."""

import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polypfed import Evaluation, Failure, Federation, Mean, Task, Update
from polypfed.backends.site_file import Later, SiteFile, with_keys
from polypfed.clients.guard import Charter
from polypfed.clients.outbox import describe
from polypfed.clients.plan import digest, hash_of, plan_of
from polypfed.clients.plans import Plans
from polypfed.clients.policy import MODES, Policy
from polypfed.clients.site import Site
from polypfed.core.errors import ConfigError
from polypfed.core.messages import Reply
from polypfed.federation.plan import task_config
from polypfed.privacy import stages
from polypfed.privacy.keyring import provision
from polypfed.privacy.ledger import Ledger
from polypfed.privacy.stage import Quantise
from polypfed.strategies import FedAvg, FedBuff, FedProx, KeepBest, Registry, Scaffold
from tests.problems import Scripted, sites


def asked(strategy: Any = FedAvg(), mode: str = "plain", round: int = 1, kind: Any = "fit", **config: Any) -> Task:  # noqa: B008
    client = sites(1)[0]
    settings = {"strategy": Registry.describe(strategy), "run": "r", "seed": 0, "cohort": 3} | config
    if mode != "plain":
        settings["strategy"] = Registry.describe(FedAvg(reducer=Mean("uniform")))
        settings["stages"] = {"list": describe(stages(mode, where="site")), "sites": 3, "seed": 0, "simulate": False}
    return Task(round, kind, {"model": client.initial()[1]}, settings)


def answer(task: Task, folder: Path | None = None, **policy: Any) -> Reply:
    client = sites(1)[0]
    plans = folder / "plans" if folder else None
    budget = folder / "budget.json" if folder else None
    charter = Charter(Policy(**policy), plans=plans, budget=budget)
    return Site(client, folder, charter).perform(task)


def test_no_policy_allows_everything() -> None:
    assert isinstance(answer(asked()), Update)


@pytest.mark.parametrize(
    ("policy", "task"),
    [
        ({"strategies": ["scaffold"]}, asked()),
        ({"strategies": ["keepbest"]}, asked(KeepBest(inner=FedAvg()))),
        ({"strategies": []}, asked()),
        ({"privacy": ["he", "hybrid"]}, asked()),
        ({"privacy": ["plain"]}, asked(mode="dp")),
        ({"rounds": 4}, asked(round=5)),
        ({"min_cohort": 4}, asked()),
        ({"min_cohort": 2}, asked(cohort=True)),
        ({"min_cohort": 2}, asked(cohort=None)),
        ({"epsilon": 8.0}, asked()),
        ({"approve": True}, asked()),
        ({"approve": True, "plans": ["sha256:" + "0" * 64]}, asked()),
        ({"approve": True, "plans": [digest(asked().config)]}, asked(FedProx(mu=0.1))),
        ({"strategies": ["scaffold"]}, asked(kind="evaluate")),
        ({"strategies": ["scaffold"]}, asked(kind="step")),
    ],
)
def test_a_task_outside_the_policy_is_refused_before_anything_is_done(
    policy: dict[str, Any], task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polypfed import NumpyClient

    def touched(*_: object) -> None:
        raise AssertionError("the client was reached")

    for name in ("fit", "evaluate", "restore"):
        monkeypatch.setattr(NumpyClient, name, touched)
    reply = answer(task, **policy)
    assert isinstance(reply, Failure)
    assert reply.reason == "policy"


@pytest.mark.parametrize(
    ("policy", "task"),
    [
        ({"strategies": ["fedavg", "keepbest"]}, asked(KeepBest(inner=FedAvg()))),
        ({"privacy": ["plain"], "rounds": 1, "min_cohort": 3}, asked()),
        ({"approve": True, "plans": [digest(asked().config)]}, asked(seed=99, round=7)),
        ({"min_cohort": 4}, asked(kind="evaluate")),
    ],
)
def test_a_task_within_it_is_done(policy: dict[str, Any], task: Task) -> None:
    assert not isinstance(answer(task, **policy), Failure)


def cohorts(fed: Federation, rounds: int = 2) -> list[Any]:
    """What the tasks to train say of the cohort; none may fail."""
    said = list[Any]()

    def script(name: str, task: Task, reply: Reply) -> Any:
        if task.kind == "fit":
            said.append(task.config.get("cohort"))
        yield reply

    assert not fed.run(rounds, Scripted(script)).failures
    return said


@pytest.mark.parametrize("line", [*MODES, "rounded"])
def test_every_task_to_train_says_how_many_take_part(line: Any) -> None:
    """Else a site that asks for company would refuse all of them."""
    even = FedAvg(reducer=Mean("uniform"))
    chosen = (Quantise(),) if line == "rounded" else stages(line, cap=None)
    budget = Ledger(math.inf, 1e-5) if line == "dp" else None
    fed = Federation(clients=sites(4), strategy=even, stages=chosen, budget=budget, per_round=3)
    assert cohorts(fed) == [3] * 6


def test_an_asynchronous_task_says_how_many_updates_fill_the_buffer() -> None:
    assert cohorts(Federation(clients=sites(4), strategy=FedBuff(buffer=2))) == [2] * 4


def test_epochs_are_the_clients_own_setting() -> None:
    client = sites(1)[0]
    object.__setattr__(client, "epochs", 11)
    task = asked()
    within, beyond = (Site(client, None, Charter(Policy(max_epochs=m))).perform(task) for m in (11, 10))
    assert isinstance(within, Update)
    assert isinstance(beyond, Failure)
    assert beyond.reason == "policy"


def test_a_plan_waits_until_it_is_approved_and_can_be_revoked(tmp_path: Path) -> None:
    task, plans = asked(Scaffold(eta=0.5)), Plans(tmp_path / "plans")
    refused = answer(task, tmp_path, approve=True)
    name = digest(task.config)
    assert isinstance(refused, Failure)
    assert f"polypfed policy approve {name}" in refused.detail
    assert plans.waiting() == {name: plan_of(task.config)}
    assert not plans.approved()
    assert plans.approve(name) == name
    assert not plans.waiting()
    task = replace(task, vectors={**task.vectors, "c": task.vectors["model"] * 0})
    assert isinstance(answer(task, tmp_path, approve=True), Update)
    assert isinstance(answer(asked(Scaffold(eta=0.6)), tmp_path, approve=True), Failure)
    plans.revoke(name)
    assert isinstance(answer(task, tmp_path, approve=True), Failure)


def test_a_forged_approval_does_not_count(tmp_path: Path) -> None:
    """A file in `approved/` must hold the plan whose hash it is named by."""
    plans, task = Plans(tmp_path / "plans"), asked()
    answer(asked(FedProx(mu=0.1)), tmp_path, approve=True)
    plans.approve(digest(asked(FedProx(mu=0.1)).config))
    approved = next((tmp_path / "plans" / "approved").iterdir())
    approved.rename(approved.with_name(digest(task.config).removeprefix("sha256:") + ".json"))
    assert isinstance(answer(task, tmp_path, approve=True), Failure)
    for wrong in ("sha256:..", "../../etc/passwd", digest(task.config)[:-1]):
        with pytest.raises(ConfigError):
            plans.approve(wrong)


def test_a_server_fills_no_disk_with_plans(tmp_path: Path) -> None:
    for i in range(60):
        answer(asked(FedProx(mu=0.1 + i)), tmp_path, approve=True)
    assert len(Plans(tmp_path / "plans").waiting()) == 50


def test_only_disclosed_metrics_leave() -> None:
    fit, evaluate = answer(asked(), disclose=[]), answer(asked(kind="evaluate"), disclose=["loss"])
    assert isinstance(fit, Update)
    assert isinstance(evaluate, Evaluation)
    assert fit.metrics == {}
    assert set(evaluate.metrics) <= {"loss"}
    assert Policy(disclose=["map50"]).disclosed({"map50@b": 1.0, "map5": 2.0, "model_digest": 3.0}) == {
        "map50@b": 1.0,
        "model_digest": 3.0,
    }


def test_the_site_counts_what_noise_costs_and_stops_by_itself(tmp_path: Path) -> None:
    """As many answers as an accountant of its own allows; simulated noise is none."""
    pytest.importorskip("dp_accounting")
    from polypfed.privacy import Ledger

    task = asked(mode="dp")
    budget = Ledger(20.0, 1e-5).charged(1.0, releases=3).spent
    replies = [answer(replace(task, round=i), tmp_path, epsilon=budget * 1.0001) for i in (1, 2, 3, 4)]
    assert [getattr(r, "reason", "") for r in replies] == ["", "", "", "budget"]
    pretended = {**task.config, "stages": {**task.config["stages"], "simulate": True}}
    assert getattr(answer(replace(task, config=pretended), tmp_path, epsilon=99.0), "reason", "") == "policy"


def test_old_records_of_single_samples_are_deleted(tmp_path: Path) -> None:
    records = tmp_path / "selection"
    records.mkdir()
    for name, days in (("old.csv", 91), ("new.csv", 89)):
        (records / name).write_text("x")
        os.utime(records / name, (time.time() - days * 86400,) * 2)
    answer(asked(), tmp_path, keep_samples_days=90)
    assert [p.name for p in records.iterdir()] == ["new.csv"]


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"max_epoch": 3}, "no such setting"),
        ({"strategies": "fedavg"}, "list of words"),
        ({"privacy": ["hee"]}, "not one of"),
        ({"rounds": 0}, "whole number"),
        ({"rounds": True}, "whole number"),
        ({"approve": 1}, "true or false"),
        ({"epsilon": math.nan}, "above 0"),
        ({"keep_samples_days": "90"}, "whole number"),
    ],
)
def test_a_wrong_policy_is_named(table: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Policy.from_table(table)


def test_the_plan_is_known_before_any_task_and_the_same_on_every_task() -> None:
    fed = Federation(clients=sites(), strategy=KeepBest(metric="-gradient_norm", inner=FedProx(mu=0.1)))
    plans = set()

    def script(name: str, task: Task, reply: Reply) -> Any:
        plans.add(digest(task.config))
        yield reply

    fed.run(3, Scripted(script))
    assert plans == {digest(task_config(fed))}


def test_a_site_file_carries_policy_log_and_keys(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    text = 'name = "site-00"\nclient = "tests.live.sites:client"\n[settings]\nnames = ["site-00"]\n'
    path.write_text(text + "[policy]\napprove = true\n")
    folders = {"site-00": tmp_path / "keys", "site-01": tmp_path / "other"}
    provision(list(folders), tmp_path, sites=folders, server=tmp_path / "server" / "keys")
    from polypfed.backends.local import open_site

    site = SiteFile.load(path)
    reply = open_site(Later(site), site.state).perform(asked())
    assert isinstance(reply, Failure)
    assert reply.reason == "policy"
    Plans(site.state / "plans").approve(hash_of(plan_of(asked().config)))
    signed = open_site(Later(site), site.state).perform(asked())
    assert isinstance(signed, Update)
    assert len(bytes.fromhex(signed.signature)) == 64
    assert len((site.state / "audit.jsonl").read_text().splitlines()) == 2
    assert with_keys(Federation(clients=sites()), tmp_path / "server").keys == tmp_path / "server" / "keys"
    assert with_keys(Federation(clients=sites()), tmp_path).keys is not None
    assert with_keys(Federation(clients=sites()), tmp_path / "nowhere").keys is None
    path.write_text(text + "[policy]\napprov = true\n")
    with pytest.raises(ConfigError, match="no such setting"):
        SiteFile.load(path)
