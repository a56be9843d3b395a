"""Dockerfiles and systemd units: linted where their linters are installed, and held to a few rules everywhere.

No container engine and no running systemd is needed, and none of the images is built here.
"""

import getpass
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from polypfed.backends.texts import unit

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "deploy").glob("*Dockerfile"))
HADOLINT = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
MOST_EXPOSED = 50  # tenths, by systemd's own table: 10 is a root shell, 5 "medium"


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def test_there_are_dockerfiles() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile", "device.Dockerfile"]


@pytest.mark.skipif(HADOLINT is None, reason="no hadolint")
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    done = subprocess.run([str(HADOLINT), "--no-color", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_runs_is_not_root_has_no_secret_and_fetches_nothing_of_python(path: Path) -> None:
    stages: list[list[tuple[str, str]]] = []
    for word, rest in instructions(path):
        if word == "FROM":
            stages.append([])
        elif stages:
            stages[-1].append((word, rest))
    assert len(stages) > 1
    assert stages[0] == [("COPY", ". /bundle"), ("RUN", "/bundle/install.sh /opt/polypfed/.venv")]
    for stage in stages[1:]:
        users = [rest for word, rest in stage if word == "USER"]
        assert users[-1] == "10001"
        copied = [rest for word, rest in stage if word in ("COPY", "ADD")]
        assert copied in ([], ["--from=build /opt/polypfed/.venv /opt/polypfed/.venv"])
        told = " ".join(rest for word, rest in stage if word in ("ENV", "ARG", "RUN"))
        assert not re.search(r"key|password|secret|token|pip |curl|wget|https?:", told, re.IGNORECASE)
    bases = [rest for word, rest in instructions(path) if word == "FROM"]
    assert all(re.match(r"python:\$\{PYTHON\} AS |server AS ", base) for base in bases)
    assert ("ARG", "PYTHON=3.11-slim-bookworm") in instructions(path)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
@pytest.mark.parametrize("restart", ["always", "on-failure"])
def test_systemd_takes_the_units(restart: str, tmp_path: Path) -> None:
    start = tmp_path / "start.sh"
    start.write_text("#!/bin/sh\n")
    start.chmod(0o755)
    text = unit("polypfed on this device", restart)  # type: ignore[arg-type]
    text = text.replace("/opt/polypfed/start.sh", str(start)).replace("User=polypfed", f"User={getpass.getuser()}")
    assert str(start) in text
    path = tmp_path / "polypfed-test.service"

    def complaints(text: str) -> list[str]:
        path.write_text(text)
        done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
        return [line for line in done.stderr.splitlines() if path.name in line]

    assert complaints(text) == []
    assert "Unknown key 'Restrat'" in str(complaints(text.replace("Restart=", "Restrat=")))
    path.write_text(text.replace(f"User={getpass.getuser()}", "User=polypfed"))
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={MOST_EXPOSED}", "--no-pager", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:]
