"""What `deploy.write` leaves on disk, the roll, and a site's dry run; without any process of Flower's."""

import ast
import re
import ssl
import stat
import subprocess
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("flwr")

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from polypfed.backends.flower import deploy
from polypfed.backends.flower.certificates import Authority, pem, site_keys
from polypfed.backends.flower.dry_run import dry_run, sealed
from polypfed.backends.flower.roll import Roll, normal, read_keys
from polypfed.backends.flower.server_app import ServerFile
from polypfed.backends.flower.site import node
from polypfed.backends.site_file import SiteFile
from polypfed.core.errors import BackendError, ConfigError

NAMES = ["north", "south"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("deploy")
    (base / "study.toml").write_text("# a study")
    plan = deploy.Plan(
        NAMES,
        host="fed.example.org",
        port=8443,
        client="tests.live.flower.study:client",
        federation="tests.live.flower.study:federation",
        settings={n: {"names": NAMES} for n in NAMES},
        server_settings={"rounds": 2},
    )
    return deploy.write(base / "made", plan)


def test_secrets_are_for_their_owner_only_and_lie_where_they_belong(folder: Path) -> None:
    secrets = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and b"PRIVATE" in p.read_bytes()}
    assert secrets == {"ca/ca.key", "server/server.key", "sites/north/site.key", "sites/south/site.key"}
    assert {stat.S_IMODE((folder / s).stat().st_mode) for s in secrets} == {0o600}


def test_the_certificate_is_the_servers_and_of_its_authority(folder: Path) -> None:
    authority = x509.load_pem_x509_certificate((folder / "ca" / "ca.crt").read_bytes())
    certificate = x509.load_pem_x509_certificate((folder / "server" / "server.pem").read_bytes())
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]
    assert (certificate.not_valid_after_utc - datetime.now(UTC)).days > 700
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server" / "server.pem", folder / "server" / "server.key")


def test_each_site_has_a_key_of_its_own_and_the_server_knows_it(folder: Path) -> None:
    keys = read_keys(folder / "server" / "sites")
    assert sorted(keys) == NAMES
    for name in NAMES:
        private = serialization.load_ssh_private_key((folder / "sites" / name / "site.key").read_bytes(), None)
        public = private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        assert normal(public) == keys[name]
    assert len(set(keys.values())) == 2


def test_the_settings_are_read_back(folder: Path) -> None:
    file = ServerFile.load(folder / "server" / "server.toml")
    assert (file.directory, file.settings) == (folder / "server" / "run", {"rounds": 2})
    for index, name in enumerate(NAMES):
        site = SiteFile.load(folder / "sites" / name / "site.toml")
        assert (site.name, site.settings["names"], site.engine["port"]) == (name, NAMES, 9094 + index)
        command = node(site, None).command
        assert command[command.index("--superlink") + 1] == "fed.example.org:8443"
        assert "--insecure" not in command
        assert node(site, None).environment["FLWR_TELEMETRY_ENABLED"] == "0"


def test_scripts_and_units_are_whole(folder: Path) -> None:
    for script in [*folder.rglob("*.sh")]:
        assert script.stat().st_mode & 0o100
        subprocess.run(["sh", "-n", script], check=True)
    start = (folder / "server" / "start.sh").read_text()
    for needed in (
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        "--ssl-keyfile",
        "--database",
    ):
        assert needed in start
    assert "--insecure" not in start
    assert deploy.port_of(folder / "server") == 8443
    for unit in folder.rglob("*.service"):
        text = unit.read_text()
        assert "Restart=always" in text
        assert set(re.findall(r"^\[(\w+)\]$", text, re.MULTILINE)) == {"Unit", "Service", "Install"}


def test_no_code_of_ours_travels_in_the_app(folder: Path) -> None:
    app = folder / "server" / "app"
    project = tomllib.loads((app / "pyproject.toml").read_text())
    assert project["project"]["dependencies"] == ["flwr>=1.41.0,<1.42"]  # nothing that a site would download
    components = project["tool"]["flwr"]["app"]["components"]
    assert components == {"serverapp": "polypfed_app.server:app", "clientapp": "polypfed_app.client:app"}
    for file in app.rglob("*.py"):
        assert len(ast.parse(file.read_text()).body) <= 2


def test_a_folder_is_never_written_over(folder: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        deploy.write(folder, deploy.Plan(NAMES))


@pytest.mark.parametrize("names", [[], ["a", "a"], ["../a"], ["a b"]])
def test_names_are_checked_before_anything_is_written(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ConfigError):
        deploy.write(tmp_path / "made", deploy.Plan(names))
    assert not (tmp_path / "made").exists()


def test_a_key_that_others_can_read_is_refused(folder: Path) -> None:
    site = SiteFile.load(folder / "sites" / "north" / "site.toml")
    key = folder / "sites" / "north" / "site.key"
    key.chmod(0o640)
    try:
        with pytest.raises(ConfigError, match=r"can be read by others.*chmod 600"):
            node(site, None)
    finally:
        key.chmod(0o600)


# ------------------------------------------------------------------------------------------------------- the roll


def online(*keys: bytes) -> list[Any]:
    return [SimpleNamespace(node_id=100 + i, public_key=key) for i, key in enumerate(keys)]


def test_a_node_serves_the_site_of_its_key_and_strangers_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    north, south, stranger = (site_keys()[1] for _ in range(3))
    (tmp_path / "north.pub").write_bytes(north)
    (tmp_path / "south.pub").write_bytes(south)
    roll = Roll(lambda: online(stranger, south, b"noise"), read_keys(tmp_path))
    assert roll() == {"south": 101}
    assert roll() == {"south": 101}
    assert caplog.text.count("node 100 is online with a key of no site") == 1


def test_waiting_ends_when_enough_are_there_or_patience_is_over(tmp_path: Path) -> None:
    key = site_keys()[1]
    (tmp_path / "a.pub").write_bytes(key)
    calls: list[int] = []

    def nodes() -> list[Any]:
        calls.append(1)
        return online(key) if len(calls) > 2 else []

    assert Roll(nodes, read_keys(tmp_path)).within(30.0) == {"a": 100}
    assert len(calls) == 3
    assert Roll(list, read_keys(tmp_path)).within(0.1) == {}


def test_keys_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no NAME.pub"):
        read_keys(tmp_path)
    key = site_keys()[1]
    (tmp_path / "a.pub").write_bytes(key)
    (tmp_path / "b.pub").write_bytes(key)
    with pytest.raises(ConfigError, match="is the key of a too"):
        read_keys(tmp_path)
    (tmp_path / "b.pub").write_bytes(b"ssh-ed25519 AAAA")
    with pytest.raises(ConfigError, match="is not the public key"):
        read_keys(tmp_path)


# ----------------------------------------------------------------------------------------------------- the dry run


def test_a_dry_run_shows_what_would_be_sent(folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    found = dry_run(folder / "sites" / "north" / "site.toml")
    assert found.good
    text = "\n".join(found.lines())
    assert re.search(r"fit: would send \d+ bytes, weight 7", text)
    assert "vector delta: 3 x float32" in text
    assert "metric gradient_norm" in text
    assert text.endswith("Nothing was sent.")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before  # and nothing was kept


@dataclass
class Keeping:
    """A client with a folder of its own."""

    inner: Any
    directory: Path

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def fit(self, task: Any) -> Any:
        (self.directory / "seen.csv").write_text("image 17")
        return self.inner.fit(task)


def test_a_dry_run_keeps_nothing_of_a_client_that_writes_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, own = SiteFile.open, folder / "sites" / "north"
    monkeypatch.setattr(SiteFile, "open", lambda site: Keeping(opened(site), own))
    assert dry_run(own / "site.toml").good
    assert not (own / "seen.csv").exists()


def test_a_dry_run_cannot_open_a_connection() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with sealed(), pytest.raises(BackendError, match="a dry run sends nothing"):
            socket.create_connection(address)
        socket.create_connection(address).close()


def test_a_dry_run_finds_an_expired_authority_and_a_failing_client(folder: Path) -> None:
    site = folder / "sites" / "south"
    good = (site / "ca.crt").read_bytes()
    (site / "ca.crt").write_bytes(pem(Authority.new("old", datetime.now(UTC) - timedelta(days=3 * 365)).certificate))
    with pytest.raises(ConfigError, match=r"ca.crt: has expired"):
        dry_run(site / "site.toml")
    (site / "ca.crt").write_bytes(good)
    text = (site / "site.toml").read_text()
    (site / "site.toml").write_text(text.replace("[settings]", '[settings]\nact = "nonsense"\nwhen = 1'))
    assert dry_run(site / "site.toml").good  # it has no such act, so it trains
    (site / "site.toml").write_text(text)


def test_own_code_is_named_on_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from polypfed.cli import app

    own = ["--client", "mine:client", "--federation", "mine:federation"]
    command = ["deploy", "flower", str(tmp_path / "fed"), "--site", "north", "--site", "south"]
    assert CliRunner().invoke(app, [*command, *own]).exit_code == 0
    server = tomllib.loads((tmp_path / "fed" / "server" / "server.toml").read_text())
    site = tomllib.loads((tmp_path / "fed" / "sites" / "south" / "site.toml").read_text())
    assert (server["federation"], site["client"], site["settings"]) == ("mine:federation", "mine:client", {})
    (tmp_path / "study.toml").write_text("# a study")
    for wrong in (own[:2], own[2:], [*own, "--study", str(tmp_path / "study.toml")]):
        done = CliRunner().invoke(app, ["deploy", "flower", str(tmp_path / "second"), "--site", "north", *wrong])
        assert done.exit_code == 2
        assert "--client and --federation" in " ".join(done.output.split())
    assert not (tmp_path / "second").exists()
