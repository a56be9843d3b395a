"""A provisioned NVFlare deployment for real: server, two sites and an administrator on 127.0.0.1, over mutual TLS."""

import hashlib
import json
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from polypfed import Federation, History, Task
from polypfed.backends import Local
from polypfed.report.watch import look, place_of
from tests.live.loopback import until
from tests.live.nvflare import study
from tests.live.nvflare.processes import Deployment, edit
from tests.problems import Odd, divide

pytestmark = pytest.mark.live
SITES = ["site-1", "site-2"]


def here(rounds: int = 3, **settings: object) -> str:
    """SHA-256 of the model that the same study gives on `Local`."""
    fed = Federation(clients=study.clients(SITES), **study.settings(**settings))
    history: History = fed.run(rounds, Local())
    assert history.model is not None
    return hashlib.sha256(history.model.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("nvflare"), SITES)
    try:
        made.start_all()
        yield made
    finally:
        assert made.close() == []


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "scaffold"])
def test_the_bits_of_local(deployment: Deployment, strategy: str) -> None:
    edit(deployment, strategy=strategy)
    if strategy == "scaffold":  # in two jobs
        assert deployment.conduct(strategy, rounds=2)["sha256"] == here(2)
    result = deployment.conduct(strategy)
    assert result == {"status": "completed", "rounds": 3, "sha256": here(strategy=strategy)}
    assert deployment.accepted(strategy) == {1: 2, 2: 2, 3: 2}
    rows = deployment.lines("history.jsonl", strategy)
    crossed = {(r["site"], r["metric"]) for r in rows if "@" in r["metric"] and r["round"] == 3}
    assert {(a, f"gradient_norm@{b}") for a in SITES for b in SITES} <= crossed  # the cross-site matrix


def test_without_a_certificate_nobody_is_let_in(deployment: Deployment) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(deployment.server / "startup" / "rootCA.pem")

    def shake() -> bytes:
        with (
            socket.create_connection(("127.0.0.1", deployment.port), 5) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as wrapped,
        ):
            return wrapped.recv(1)  # under TLS 1.3 the server's refusal comes after the handshake

    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake()


SUBMIT = """
job = opened.submit_job({folder!r})
meta = operate.watch(opened, job)
answer = [meta["status"], str(operate.fetch(opened, job, Path({into!r})))]
"""


def exported(deployment: Deployment, arguments: str, folder: Path) -> Path:
    """An exported job called "evil"."""
    deployment.ask(
        "from polypfed.backends.nvflare.recipe import PolypRecipe\n"
        f"answer = PolypRecipe('evil', {arguments}).export({str(folder)!r})"
    )
    return folder / "evil"


def test_a_job_that_brings_code_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    job = exported(deployment, f"code={study.__file__!r}, client_settings={{'names': {SITES}}}", tmp_path)
    assert list(job.rglob("custom/study.py"))
    status, _ = deployment.ask(SUBMIT.format(folder=str(job), into=str(tmp_path / "fetched")))
    assert status != "FINISHED:COMPLETED"
    assert not deployment.run_folder("evil").exists()


def test_a_job_without_code_cannot_name_any(deployment: Deployment, tmp_path: Path) -> None:
    job = exported(deployment, "", tmp_path)
    path = next(job.rglob("config_fed_server.json"))
    text = path.read_text()
    assert '"federation": ""' in text
    path.write_text(text.replace('"federation": ""', '"federation": "os:system"'))
    _, folder = deployment.ask(SUBMIT.format(folder=str(job), into=str(tmp_path / "fetched")))
    result = json.loads((Path(folder) / "workspace" / "polypfed" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "ships no code" in result["detail"]


def test_a_sites_own_privacy_filter_acts_on_what_it_sends(deployment: Deployment) -> None:
    """`local/privacy.json` of one site; the other's update is as it was."""
    path = deployment.kit("site-1") / "local" / "privacy.json"
    clip = {"name": "PercentilePrivacy", "args": {"percentile": 0, "gamma": 0.001}}
    scope = {"name": "strict", "task_result_filters": [clip]}
    path.write_text(json.dumps({"scopes": [scope], "default_scope": "strict"}))
    edit(deployment, strategy="fedavg", evaluate="off")
    roster = deployment.server / "local" / "keys" / "roster.json"
    aside = roster.rename(roster.with_suffix(".aside"))  # a filter changes what has been signed
    try:
        got = deployment.conduct("private", rounds=1)["sha256"]
    finally:
        path.unlink()
        aside.rename(roster)
    one, two = study.clients(SITES)
    x = one.initial()[1]
    task = Task(1, "fit", {"model": x})
    clipped = np.clip(one.fit(task).vectors["delta"], -0.001, 0.001)
    free = two.fit(task).vectors["delta"]
    mean = (clipped.astype(np.float64) * one.weight + free.astype(np.float64) * two.weight) / (one.weight + two.weight)
    assert got == hashlib.sha256((x + mean.astype(np.float32)).tobytes()).hexdigest()
    assert got != here(1, strategy="fedavg", evaluate="off")


def test_a_crash_and_a_hang_in_training_cost_a_round_each_and_the_job_goes_on(deployment: Deployment) -> None:
    files = {n: deployment.kit(n) / "local" / "polypfed.toml" for n in SITES}
    before = {n: path.read_text() for n, path in files.items()}
    for n in SITES:
        (deployment.kit(n) / "local" / "began").unlink(missing_ok=True)
    files["site-1"].write_text(before["site-1"] + 'act = "die"\nwhen = 2\n')
    files["site-2"].write_text(before["site-2"] + 'act = "hang"\nwhen = 3\n')
    edit(deployment, strategy="scaffold", quorum=1, deadline=6.0, evaluate="off")
    try:
        result = deployment.conduct("faulty", rounds=4)
    finally:
        for n in SITES:
            files[n].write_text(before[n])
    assert result["status"] == "completed"
    assert deployment.accepted("faulty") == {1: 2, 2: 1, 3: 1, 4: 2}
    failures = [(f["client"], f["round"], f["reason"]) for f in deployment.lines("failures.jsonl", "faulty")]
    assert failures == [("site-1", 2, "lost"), ("site-2", 3, "deadline")]


def test_nan_and_a_wrong_shape_count_for_nothing(deployment: Deployment) -> None:
    """The same model as if those sites had not answered in those rounds."""
    files = {n: deployment.kit(n) / "local" / "polypfed.toml" for n in SITES}
    before = {n: path.read_text() for n, path in files.items()}
    for (n, path), act, when in zip(files.items(), ("nan", "shape"), (2, 3), strict=True):
        (path.parent / "began").unlink(missing_ok=True)
        path.write_text(f'{before[n]}act = "{act}"\nwhen = {when}\n')
    edit(deployment, strategy="fedavg", quorum=1, evaluate="off")
    try:
        result = deployment.conduct("poisoned", rounds=4)
    finally:
        for n in SITES:
            files[n].write_text(before[n])
    failures = [(f["client"], f["round"], f["reason"]) for f in deployment.lines("failures.jsonl", "poisoned")]
    assert failures == [("site-1", 2, "non-finite"), ("site-2", 3, "shape")]
    absent = [Odd(c, divide, (when,)) for c, when in zip(study.clients(SITES), (2, 3), strict=True)]
    settings = study.settings(strategy="fedavg", quorum=1, evaluate="off")
    model = Federation(clients=absent, **settings).run(4, Local()).model
    assert model is not None
    assert result["sha256"] == hashlib.sha256(model.tobytes()).hexdigest()


def pausing(deployment: Deployment, name: str, when: int) -> str:
    """Let the site's training pause in round `when`; its settings as they were."""
    path = deployment.kit(name) / "local" / "polypfed.toml"
    (path.parent / "began").unlink(missing_ok=True)
    before = path.read_text()
    path.write_text(before + f'act = "pause"\nwhen = {when}\n')
    return before


def during(deployment: Deployment, run: str, name: str, act: Callable[[], None]) -> tuple[int, str, str]:
    """`polypfed nvflare run`, and `act` when the site called `name` trains in the round in which it pauses."""
    answer: list[tuple[int, str, str]] = []
    arguments = ("run", str(deployment.admin), "--name", run)
    thread = threading.Thread(target=lambda: answer.append(deployment.command(*arguments)))
    thread.start()
    try:
        until((deployment.kit(name) / "local" / "began").exists)
        act()
    finally:
        thread.join()
    return answer[0]


def test_a_training_process_is_killed_and_the_round_goes_on(deployment: Deployment) -> None:
    before = pausing(deployment, "site-2", 2)
    edit(deployment, strategy="scaffold", quorum=1, evaluate="off")
    local = deployment.kit("site-2") / "local"

    def kill() -> None:
        child = int((local / "began").read_text())
        assert child in deployment.processes("site-2")
        seen = look(place_of(deployment.folder))
        assert (seen.run.name, seen.status, seen.round, seen.phase) == ("childless", "running", 2, "training")
        os.kill(child, signal.SIGKILL)

    try:
        code, said, errors = during(deployment, "childless", "site-2", kill)
    finally:
        (local / "polypfed.toml").write_text(before)
    assert code == 0, errors
    assert deployment.accepted("childless") == {1: 2, 2: 1, 3: 2}
    failures = [(f["client"], f["round"], f["reason"]) for f in deployment.lines("failures.jsonl", "childless")]
    assert failures == [("site-2", 2, "lost")]
    assert "round 2 of 3" in said
    seen = look(place_of(deployment.folder))
    assert (seen.status, seen.round, seen.rounds) == ("complete", 3, 3)
    assert [s.refused for s in seen.sites] == [0, 1]


def test_a_job_process_of_a_site_is_killed_and_the_run_resumed(deployment: Deployment) -> None:
    """NVFlare ends the whole job then; the run goes on where it was, to the same bits."""
    before = pausing(deployment, "site-1", 3)
    edit(deployment, strategy="scaffold")

    def kill() -> None:
        (pid,) = deployment.processes("site-1", "worker_process")
        os.kill(pid, signal.SIGKILL)

    try:
        code, _, errors = during(deployment, "clientless", "site-1", kill)
    finally:
        (deployment.kit("site-1") / "local" / "polypfed.toml").write_text(before)
    assert (code, "Traceback" in errors) == (1, False)
    assert deployment.accepted("clientless") == {1: 2, 2: 2}
    assert deployment.conduct("clientless")["sha256"] == here()


def test_a_job_process_of_the_server_is_killed_and_the_run_resumed(deployment: Deployment) -> None:
    """SIGKILL in the middle of a round: no completed round is lost, and the same bits come out."""
    before = pausing(deployment, "site-2", 2)
    edit(deployment, strategy="scaffold")

    def kill() -> None:
        (pid,) = deployment.processes("localhost", "runner_process")
        os.kill(pid, signal.SIGKILL)

    try:
        code, _, errors = during(deployment, "killed", "site-2", kill)
    finally:
        (deployment.kit("site-2") / "local" / "polypfed.toml").write_text(before)
    assert (code, "Traceback" in errors) == (1, False)
    assert deployment.accepted("killed") == {1: 2}
    assert deployment.conduct("killed")["sha256"] == here()


def test_a_site_that_loses_its_power_costs_its_rounds_and_the_others_go_on(deployment: Deployment) -> None:
    before = pausing(deployment, "site-2", 2)
    edit(deployment, strategy="fedavg", quorum=1, evaluate="off")
    server = deployment.server / "local" / "polypfed.toml"
    server.write_text(server.read_text().replace("patience = 30", "patience = 8"))

    def cut_and_come_back() -> None:
        deployment.kill("site-2")
        until(lambda: (deployment.run_folder("dark") / "result.json").exists())
        deployment.start("site-2")  # NVFlare ends the job only when it knows what became of the site

    try:
        code, _, errors = during(deployment, "dark", "site-2", cut_and_come_back)
    finally:
        (deployment.kit("site-2") / "local" / "polypfed.toml").write_text(before)
        server.write_text(server.read_text().replace("patience = 8", "patience = 30"))
    assert code == 0, errors  # whatever NVFlare calls the job
    assert deployment.accepted("dark") == {1: 2, 2: 1, 3: 1}
    reasons = {(f["client"], f["round"], f["reason"]) for f in deployment.lines("failures.jsonl", "dark")}
    assert reasons == {("site-2", 2, "lost"), ("site-2", 3, "lost")}


def test_the_whole_server_is_killed_in_a_round_started_again_and_the_run_resumed(deployment: Deployment) -> None:
    before = pausing(deployment, "site-1", 3)
    edit(deployment, strategy="scaffold")

    def cut_and_restart() -> None:
        deployment.kill("localhost")
        deployment.start("localhost")

    try:
        code, _, errors = during(deployment, "dead", "site-1", cut_and_restart)
    finally:
        (deployment.kit("site-1") / "local" / "polypfed.toml").write_text(before)
    assert (code, "Traceback" in errors) == (1, False)
    assert deployment.accepted("dead") == {1: 2, 2: 2}
    deployment.wait_for_sites()
    assert deployment.conduct("dead")["sha256"] == here()
    assert deployment.accepted("dead") == {1: 2, 2: 2, 3: 2}


def test_no_administrators_kit_is_one_line(deployment: Deployment) -> None:
    code, _, errors = deployment.command("status", str(deployment.server))
    assert code == 1
    assert errors.strip().splitlines() == [f"polypfed: {deployment.server}: is no administrator's start-up kit"]


def test_everything_is_shut_down_from_the_administrators_end(deployment: Deployment) -> None:
    assert deployment.command("stop", str(deployment.admin))[0] == 0
    until(lambda: all(process.poll() is not None for process in deployment.running.values()), 60)
