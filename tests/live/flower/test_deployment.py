"""A SuperLink with TLS and node authentication, and three SuperNodes, all real, on the loopback interface."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polypfed.backends.flower import deploy
from polypfed.backends.flower.certificates import Authority, pem, private_pem, site_keys
from polypfed.cli import app
from polypfed.report.watch import look, place_of
from tests.live.flower import study
from tests.live.flower.conftest import interfaces
from tests.live.flower.processes import Deployment
from tests.live.loopback import BIN, command, free_ports, until
from tests.live.sites import digest

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(240)]
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    found = Deployment(tmp_path_factory.mktemp("flower"), NAMES, strategy="scaffold", rounds=2)
    try:
        found.start_all()
        yield found
    finally:
        found.close()


def test_the_bits_of_local_with_state_at_the_sites(deployment: Deployment) -> None:
    assert deployment.run() == {
        "status": "completed",
        "rounds": 2,
        "sha256": digest(NAMES, 2, **study.settings("scaffold")),
        "code": 0,
    }
    assert not deployment.failures()
    assert all(any((deployment.folder / "sites" / n).glob("state/sites/*/state/*")) for n in NAMES)


def test_all_that_had_no_network(deployment: Deployment, offline: bool) -> None:
    """The SuperLink, the SuperNodes and their workers live in a namespace that has loopback and nothing else."""
    if not offline:
        pytest.skip("this system forbids network namespaces")
    own = os.readlink("/proc/thread-self/ns/net")
    pids = [pid for what in deployment.running for pid in deployment.processes(what)]
    assert len(pids) > 8
    assert {os.readlink(f"/proc/{pid}/ns/net") for pid in pids if command(pid)} == {own}
    assert interfaces() == ["lo"]
    with pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.0.2.1", 443), timeout=5)


def test_flwr_run_as_a_flower_user_does_it(deployment: Deployment) -> None:
    deployment.edit("server/server.toml", '"scaffold"', '"fedadam"')
    deployment.edit("server/server.toml", 'directory = "run"', 'directory = "second"')
    deployment.edit("server/server.toml", "rounds = 2", "rounds = 1")
    done = deploy.flwr(deployment.server, "run", str(deployment.server / "app"), "deploy", "--stream")
    assert done.returncode == 0
    assert f"the run is complete: model {digest(NAMES, 1, **study.settings('fedadam'))}" in done.stdout


def test_a_node_under_another_name_is_refused_and_the_others_go_on(deployment: Deployment) -> None:
    """The key is a's; the node's own file says b."""
    deployment.edit("server/server.toml", 'directory = "second"', 'directory = "third"')
    deployment.edit("sites/a/site.toml", 'name = "a"', 'name = "b"')
    deployment.edit("server/server.toml", "[settings]", '[track]\njson = "run.log"\n\n[settings]')
    process = deployment.start("server", "run.sh")
    assert process.wait(120) == 0
    said = deployment.log("server", "run.sh")
    assert "site a, round 1: unknown-client: the reply names itself 'b'" in said
    assert "the server knows this node's key as 'a', its own site.toml says 'b'" in deployment.log("sites/a")
    seen = look(place_of(deployment.folder))
    assert (seen.status, seen.round, seen.rounds) == ("complete", 1, 1)
    assert [(f["client"], f["reason"]) for f in seen.refused] == [("a", "unknown-client")]
    assert [s.doing for s in seen.sites] == ["update refused: unknown-client", *2 * ["trained round 1"]]
    assert all(s.heard is not None for s in seen.sites)
    log = [json.loads(line) for line in (deployment.server / "run.log").read_text().splitlines()]
    accepted = [line["value"] for line in log if line.get("metric") == "accepted"]
    assert accepted == [deployment.accepted()[1]] == [2]
    deployment.edit("sites/a/site.toml", 'name = "b"', 'name = "a"')


def test_the_watch_tells_what_privacy_was_spent(deployment: Deployment) -> None:
    """The server's folder holds no study; what is spent and of how much is known from the run."""
    deployment.serve("noised", rounds=2, mode="dp")
    assert deployment.run()["rounds"] == 2
    spent = [row["value"] for row in deployment.history() if row["metric"] == "epsilon"]
    assert len(spent) == 2
    assert 0 < spent[0] < spent[1] < 40
    seen = look(place_of(deployment.folder))
    assert (seen.status, seen.epsilon, seen.budget) == ("complete", spent[1], 40.0)
    told = CliRunner().invoke(app, ["watch", "--deployment", str(deployment.folder), "--once"], catch_exceptions=False)
    assert f"epsilon {spent[1]:.2f} of 40.00" in " ".join(told.output.split())


def refused(deployment: Deployment, name: str) -> str:
    """The words with which a further node called `name` ends."""
    done = subprocess.run(
        [
            BIN / "polypfed",
            "site",
            "run",
            "--once",
            deployment.folder / name / "site.toml",
        ],
        env=deployment.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "the SuperNode ended with code" in done.stderr
    return done.stdout + done.stderr


def stranger(deployment: Deployment, name: str) -> Path:
    """A folder like site a's, with a key that nobody has registered."""
    folder = deployment.folder / name
    folder.mkdir()
    text = (deployment.folder / "sites" / "a" / "site.toml").read_text()
    (folder / "site.toml").write_text(text.replace(f"port = {deployment.ports[0]}", f"port = {free_ports(1)[0]}"))
    (folder / "ca.crt").write_bytes((deployment.server / "ca.crt").read_bytes())
    (folder / "site.key").write_bytes(site_keys()[0])
    (folder / "site.key").chmod(0o600)
    return folder


def test_an_unregistered_node_is_refused(deployment: Deployment) -> None:
    stranger(deployment, "unregistered")
    assert "2004" in refused(deployment, "unregistered")


def test_another_authority_is_refused_by_the_node(deployment: Deployment) -> None:
    folder = stranger(deployment, "otherca")
    (folder / "ca.crt").write_bytes(pem(Authority.new("another").certificate))
    assert "certificate verify failed" in refused(deployment, "otherca").lower()


def test_an_expired_certificate_is_refused_by_the_node(deployment: Deployment, tmp_path: Path) -> None:
    """A server of its own, whose authority is sound and whose certificate ended a year ago."""
    authority = Authority.new("polypfed", datetime.now(UTC))
    certificate, key = authority.server("127.0.0.1", datetime.now(UTC) - timedelta(days=3 * 365))
    other = Deployment(tmp_path, NAMES[:1])
    for name, data in (("ca.crt", pem(authority.certificate)), ("server.pem", certificate), ("server.key", key)):
        (other.server / name).write_bytes(data)
    (other.folder / "sites" / "a" / "ca.crt").write_bytes(pem(authority.certificate))
    assert private_pem(authority.key) != key
    try:
        other.start("server")
        until(lambda: "Uvicorn running" in other.log("server") or "startup complete" in other.log("server"), 60)
        assert "certificate has expired" in refused(other, "sites/a")
    finally:
        other.close()
