"""docs/tutorials/site.md typed by two sites, and by the server's owner what docs/deploy-flower.md says of them.

TLS, registered keys, signed updates, plans that each site approved for itself; then what a site and a watcher read.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest

from polypfed.data.synth import synth
from tests.live.loopback import BIN, free_ports
from tests.live.typed import Typed
from tests.problems import ROOT

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(900)]
STUDY = """
[data.synth]
[model]
arch = "yolov5n"
image_size = 64
[train]
epochs = 1
batch = 8
[federation]
rounds = 2
quorum = 2
evaluate = "global"
"""


def lines(page: str, *starts: str) -> list[str]:
    """The page's commands that begin so, in their order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    found = [line for line in blocks.splitlines() if line.startswith(starts)]
    assert len(found) >= len(starts), found
    return found


def of_site(name: str, *starts: str) -> list[str]:
    """What the tutorial has this site type, in a folder of its own name."""
    typed = " \n".join(lines("tutorials/site.md", *starts))
    return typed.replace("north", name).replace("here", name).replace("from-server", f"fed/sites/{name}").split(" \n")


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tutorial")
    port, *ports = free_ports(3)
    (folder / "study.toml").write_text(STUDY)
    synth(folder / "images", sites=["north", "south"], train=10, val=4, size=64)
    server = f"127.0.0.1:{port}"
    with Typed(folder, os.environ | {"POLYPFED_BIN": str(BIN), "POLYPFED_HOST": "127.0.0.1"}) as typed:
        for name, own in zip(("north", "south"), ports, strict=True):
            (init,) = of_site(name, "polypfed init")
            typed.run(init.replace("fed.example.org:8443", server))
            settings = folder / name / "site.toml"
            settings.write_text(settings.read_text().replace("port = 9094", f"port = {own}"))  # one machine for both
            typed.run(f"mv {name}/{name}.join.json .")
        (deploy,) = (line for line in lines("deploy-flower.md", "polypfed deploy") if "--join" in line)
        typed.run(deploy.replace("fed.example.org", f"127.0.0.1 --port {port}"))
        for name in ("north", "south"):
            copytree(folder / "images" / name, folder / name / "data")
            for line in of_site(name, "cp -r", "polypfed site dry-run"):
                typed.run(line)
        typed.start("fed/server/start.sh")
        for name in ("north", "south"):
            for line in of_site(name, "polypfed site run"):
                typed.start(line)
        typed.run(*lines("deploy-flower.md", "fed/server/run.sh"))
        yield folder


def told(folder: Path, line: str) -> str:
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_the_run_is_complete_and_both_took_part(walked: Path) -> None:
    run = walked / "fed" / "server" / "run"
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert {r["round"]: r["value"] for r in history if r["metric"] == "accepted"} == {1: 2, 2: 2}
    assert not (run / "failures.jsonl").exists() or not (run / "failures.jsonl").read_text()


def test_no_private_key_left_its_site(walked: Path) -> None:
    secrets = {p.relative_to(walked).as_posix() for p in walked.rglob("*") if p.name in ("site.key", "identity.key")}
    own = {f"{name}/{key}" for name in ("north", "south") for key in ("site.key", "keys/identity.key")}
    assert secrets == own | {"fed/server/keys/identity.key"}


def test_the_site_reads_what_was_asked_and_what_left(walked: Path) -> None:
    show, verify, export = of_site("north", "polypfed audit")
    assert "fit" in told(walked, show)
    assert "whole; signed" in told(walked, verify)
    told(walked, export)
    assert "<table" in (walked / "north" / "audit.html").read_text()
    assert "heads from elsewhere" in told(walked, "polypfed audit verify fed/server/run --against north/state")
