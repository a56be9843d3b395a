"""Twelve faults, each seeded for real as far as one machine can, each named with the remedy that mends it."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from safetensors import _safetensors_rust

import polypfed as pf
from polypfed.backends.flower import deploy
from polypfed.backends.flower.certificates import Authority, pem, site_keys, write_secret
from polypfed.core.files import read_framed, write_framed
from polypfed.data.synth import synth
from polypfed.doctor import Asked, Finding, data, device, examine, keys, machine, packages, rundirs
from polypfed.privacy.keyring import provision
from polypfed.privacy.roster import Identity

GONE = datetime.now(UTC) - timedelta(days=3 * 365)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A whole deployment on Flower, its server on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return deploy.write(tmp_path / "made", deploy.Plan(["north"], "127.0.0.1", port))


@pytest.fixture
def served(made: Path) -> Iterator[None]:
    """Somebody listens where the site will dial."""
    with socket.create_server(("127.0.0.1", deploy.port_of(made / "server"))):
        yield


def site(made: Path, **more: bool) -> list[Finding]:
    return list(examine("site", Asked(made / "sites" / "north" / "site.toml", quick=True, **more)))  # type: ignore[arg-type]


def server(made: Path) -> list[Finding]:
    return list(examine("server", Asked(made / "server", quick=True)))


def errors(findings: list[Finding]) -> dict[str, tuple[str, str]]:
    return {f.what: (f.detail, f.remedy) for f in findings if f.state == "error"}


def only(found: list[Finding], what: str, detail: str, remedy: str) -> None:
    """Nothing else fails, and this finding says what and how."""
    assert list(errors(found)) == [what]
    said, way = errors(found)[what]
    assert detail in said
    assert remedy in way


@pytest.mark.usefixtures("served")
def test_nothing_is_wrong_with_a_fresh_site(made: Path) -> None:
    found = site(made)
    assert errors(found) == {}
    assert len({f.what for f in found}) == len(found)
    assert all(f.remedy for f in found if f.state != "ok")


def test_nothing_is_wrong_with_a_fresh_server(made: Path) -> None:
    assert errors(server(made)) == {}


def test_1_missing_extra() -> None:
    found = list(packages.extras(["flower"], find=lambda module: module != "flwr"))
    only(found, "extra flower", "without flwr", "pip install 'polypfed[flower]'")
    assert errors(list(packages.extras([], find=lambda module: module != "flwr"))) == {}  # not needed: a note


@pytest.mark.usefixtures("served")
def test_2_expired_certificate(made: Path) -> None:
    (made / "sites" / "north" / "ca.crt").write_bytes(pem(Authority.new("old", GONE).certificate))
    only(site(made), "certificate ca.crt", "expired on", "Ask the server's owner for the new ca.crt")


def test_3_wrong_clock(made: Path) -> None:
    now = time.time()
    behind = machine.clock({"ca.crt": now}, now - 86400, True)
    assert (behind.state, "timedatectl set-ntp true" in behind.remedy) == ("error", True)
    assert "ca.crt is of" in behind.detail
    assert machine.clock({"ca.crt": now}, now + 5, True).state == "ok"
    assert machine.clock({}, now, False).state == "note"


def test_3_wrong_clock_makes_a_certificate_one_of_the_future(made: Path) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    (made / "sites" / "north" / "ca.crt").write_bytes(pem(Authority.new("new", tomorrow).certificate))
    found = errors(site(made))
    assert {"clock", "certificate ca.crt"} <= set(found)
    assert "clock" in found["certificate ca.crt"][1]


def test_4_full_disk(tmp_path: Path) -> None:
    found = machine.disk(tmp_path / "runs" / "deep", least_gb=1e9)
    assert (found.state, found.remedy) == ("error", f"Make room at {tmp_path}, or use another disk")
    assert "GB free" in found.detail
    assert machine.disk(tmp_path, least_gb=0).state == "ok"


def test_5_unreadable_data(tmp_path: Path) -> None:
    synth(tmp_path, sites=["north"], train=3, val=2, size=64, seed=2)
    assert errors(list(data.dataset(tmp_path))) == {}
    victim = next((tmp_path / "north" / "train" / "images").iterdir())
    victim.write_bytes(victim.read_bytes()[:200])
    found = errors(list(data.dataset(tmp_path)))
    assert list(found) == ["data, fault 1", "data, fault 2", "data"]  # the file itself, and its manifest
    assert all(victim.name in found[f"data, fault {n}"][0] for n in (1, 2))
    assert found["data"][1] == f"See them all: polypfed data check {tmp_path}"


def test_6_wrong_numpy_for_tflite_runtime(tmp_path: Path) -> None:
    def version(package: str) -> str | None:
        found = importlib.metadata.distributions(name=package, path=[str(tmp_path)])
        return next((d.version for d in found), None)

    def install(package: str, number: str) -> None:
        folder = tmp_path / f"{package}-{number}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {number}\n")

    install("numpy", "2.4.6")
    assert list(packages.pairs(version)) == []
    install("tflite_runtime", "2.14.0")
    only(list(packages.pairs(version)), "tflite-runtime", "built for NumPy 1", "pip install 'ai-edge-litert>=2.1'")
    install("ai_edge_litert", "2.3.0")
    assert errors(list(packages.pairs(version))) == {}


def test_7_foreign_libvx(tmp_path: Path) -> None:
    """A library for another processor, and one that is no delegate: both as a wrong support package gives them."""
    library = Path(str(_safetensors_rust.__file__)).read_bytes()
    foreign = tmp_path / "libvx_delegate.so"
    foreign.write_bytes(library[:18] + (243).to_bytes(2, "little") + library[20:])  # RISC-V: foreign to all
    only(list(device.delegate(str(foreign))), "delegate libvx_delegate.so", "built for riscv64", "support package")
    foreign.write_bytes(library)
    only(list(device.delegate(str(foreign))), "delegate libvx_delegate.so", "not a TFLite delegate", "vendor's library")
    foreign.unlink()
    only(list(device.delegate(str(foreign))), "delegate libvx_delegate.so", "no such delegate", "without a delegate")


@pytest.mark.usefixtures("served")
def test_8_port_taken(made: Path) -> None:
    port = deploy.port_of(made / "server")
    only(server(made), f"port {port}", "is taken", f"ss -ltnp 'sport = :{port}'")


HOLD = """
import sys, time
from pathlib import Path
from polypfed.core.rundir import RunDirectory
with RunDirectory(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_9_stale_lock(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "history.jsonl").touch()
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True) as stuck:
        try:
            assert stuck.stdout is not None
            assert stuck.stdout.readline() == "held\n"
            assert errors(list(rundirs.lock(run))) == {}  # it may be training
            later = time.time() + 3 * 3600
            only(list(rundirs.lock(run, later)), "lock of run", f"process {stuck.pid} holds it", "--resume")
        finally:
            stuck.kill()
    assert errors(list(rundirs.lock(run, later))) == {}


@pytest.mark.usefixtures("served")
def test_10_wrong_key_of_tls(made: Path) -> None:
    key = made / "sites" / "north" / "site.key"
    key.unlink()
    write_secret(key, site_keys()[0])
    only(site(made), "site.key and site.pub", "not a pair", "made together")
    key.chmod(0o644)
    assert errors(site(made))["key site.key"][1] == f"chmod 600 {key}"


def test_10_wrong_key_of_the_server(made: Path, tmp_path: Path) -> None:
    certificate, _ = Authority.new("another").server("127.0.0.1")
    (made / "server" / "server.pem").write_bytes(certificate)
    found = errors(server(made))
    assert set(found) == {"server.pem by ca.crt", "server.key and server.pem"}


def test_10_wrong_key_of_a_roster(tmp_path: Path) -> None:
    provision(["a", "b"], tmp_path)
    folder = tmp_path / "sites" / "a" / "keys"
    assert errors(list(keys.keys(folder, "a"))) == {}
    Identity.create("a").save(folder / "identity.key")
    only(list(keys.keys(folder, "a")), f"keys in {folder}", "another key for a", "polypfed keys create a")
    shutil.copy(tmp_path / "sites" / "b" / "keys" / "identity.key", folder / "identity.key")
    only(list(keys.keys(folder, "a")), f"keys in {folder}", "is that of b, not of a", "Put back the key of a")


def test_11_low_memory(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  4000000 kB\nMemAvailable:  300000 kB\n")
    only(list(machine.memory(meminfo=meminfo, cgroup=tmp_path)), "memory", "0.3 GB available", "workers = 1")
    meminfo.write_text("MemTotal:  4000000 kB\nMemAvailable:  3000000 kB\n")
    assert errors(list(machine.memory(meminfo=meminfo, cgroup=tmp_path))) == {}
    (tmp_path / "memory.max").write_text("500000000\n")
    (tmp_path / "memory.current").write_text("400000000\n")
    only(list(machine.memory(meminfo=meminfo, cgroup=tmp_path)), "memory", "0.1 GB available", "workers = 1")


def run_at(folder: Path) -> list[Path]:
    clients = [pf.NumpyClient(name, lambda x: x - 1, [0.0]) for name in "ab"]
    pf.Federation(clients=clients).run(2, pf.backends.Local(), folder)
    return sorted((folder / "checkpoint").iterdir())


def test_12_old_checkpoint(tmp_path: Path) -> None:
    for path in run_at(tmp_path / "run"):
        header, body = read_framed(path)
        del header["scores"]  # as a version before scores were kept wrote it
        write_framed(path, header, body)
    found = list(examine("researcher", Asked(directory=tmp_path, quick=True)))
    only(found, "checkpoint of run", "was written by another version", "Resume it with the version in run.json")


def test_12_a_damaged_checkpoint_behind_which_a_good_one_stands(tmp_path: Path) -> None:
    paths = run_at(tmp_path / "run")
    assert errors(list(rundirs.checkpoint(tmp_path / "run"))) == {}
    os.truncate(paths[-1], 100)
    (found,) = rundirs.checkpoint(tmp_path / "run")
    assert (found.state, paths[-2].name in found.remedy) == ("note", True)


def test_a_server_that_cannot_be_reached(made: Path) -> None:
    address = f"127.0.0.1:{deploy.port_of(made / 'server')}"
    only(site(made), f"server {address}", "nothing serves that port", "start.sh")


def test_a_study_with_mistakes_and_one_that_needs_an_extra(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text("[data.synth]\nsites = 2\n[train]\nlr = 0\nspeed = 1\n")
    found = errors(list(examine("researcher", Asked(study, tmp_path, quick=True))))
    assert "train.lr" in found["study"][0]
    assert "(and 1 more)" in found["study"][0]


@pytest.mark.parametrize(("role", "file"), [("site", "no.toml"), ("server", "nowhere")])
def test_a_missing_file_is_a_finding(role: str, file: str, tmp_path: Path) -> None:
    found = errors(list(examine(role, Asked(tmp_path / file, tmp_path, quick=True))))
    assert [what for what in found if what.endswith(".toml")]
