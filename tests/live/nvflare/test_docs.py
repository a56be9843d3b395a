"""docs/deploy-nvflare.md, executed as written."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from polypfed.core.rundir import load_model
from tests.live.loopback import BIN, family, free_ports, kill
from tests.problems import ROOT

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(3600)]
TEXT = (ROOT / "docs" / "deploy-nvflare.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def script() -> str:
    """The blocks but the installation, with free ports in the place of 8002 and 8003."""
    assert BLOCKS[0].startswith("pip install")
    port, admin_port = free_ports(2)
    ports = f"deploy nvflare fed --port {port} --admin-port {admin_port}"
    body = "".join(BLOCKS[1:]).replace("deploy nvflare fed", ports)
    assert "--admin-port" in body
    return "set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n" + body


def test_its_shell_is_sound() -> None:
    subprocess.run(["bash", "-n", "-c", script()], check=True)


@pytest.mark.skipif("POLYPFED_LONG" not in os.environ, reason="minutes of real training; set POLYPFED_LONG")
def test_the_real_job_runs_as_written(tmp_path: Path, real_data: Path) -> None:
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    more = {"POLYPFED_DATA": str(real_data), "POLYPFED_BIN": str(BIN)}
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), **more}
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", script()], cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            assert process.wait(3500) == 0, (tmp_path / "log").read_text()[-4000:]
        finally:
            for pid in family(process.pid):
                kill(pid)
    assert (tmp_path / "log").read_text().count("Complete: 3 rounds") == 2
    runs = tmp_path / "fed" / "kits" / "localhost" / "runs"
    models = [load_model(runs / name / "model.safetensors")[1] for name in ("frozen", "whole")]
    assert all(model.size > 1_000_000 for model in models)
    assert not np.array_equal(*models)
    for name in ("frozen", "whole"):
        rows = [json.loads(line) for line in (runs / name / "history.jsonl").read_text().splitlines()]
        sites = {r["site"] for r in rows if r["site"]}
        last = [r for r in rows if r["round"] == 3 and r["site"] and r["metric"].startswith("map50@")]
        assert {(r["site"], r["metric"]) for r in last} == {(a, f"map50@{b}") for a in sites for b in sites}
        (overall,) = (r["value"] for r in rows if r["round"] == 3 and not r["site"] and r["metric"] == "map50")
        (before,) = (r["value"] for r in rows if r["round"] == 0 and not r["site"] and r["metric"] == "map50")
        assert overall > before + 0.1
