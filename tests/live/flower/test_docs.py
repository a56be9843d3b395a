"""docs/deploy-flower.md, executed as written."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from polypfed.core.rundir import load_model
from tests.live.loopback import BIN, family, free_ports, kill
from tests.problems import ROOT

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(900)]
TEXT = (ROOT / "docs" / "deploy-flower.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def script() -> str:
    """The blocks but the installation, with a free port in the place of 8443."""
    assert BLOCKS[0].startswith("pip install")
    body = "".join(BLOCKS[1:]).replace("deploy flower fed", f"deploy flower fed --port {free_ports(1)[0]}")
    assert "--port" in body
    return "set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n" + body


def test_its_shell_is_sound() -> None:
    subprocess.run(["bash", "-n", "-c", script()], check=True)


@pytest.mark.skipif("POLYPFED_LONG" not in os.environ, reason="minutes of real training; set POLYPFED_LONG")
def test_the_real_job_runs_as_written(tmp_path: Path, real_data: Path) -> None:
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "POLYPFED_DATA": str(real_data)}
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", script()],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            assert process.wait(800) == 0, (tmp_path / "log").read_text()[-4000:]
        finally:
            for pid in family(process.pid):
                kill(pid, signal.SIGKILL)
    said = (tmp_path / "log").read_text()
    assert said.count("Nothing was sent.") == 2
    assert "Complete: 2 rounds" in said
    assert load_model(tmp_path / "fed" / "server" / "run" / "model.safetensors")[1].size > 1_000_000
