"""Encrypted and masked rounds in a provisioned deployment: three sites, mutual TLS, each with keys of its own."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from polypfed import Federation
from polypfed.backends import Local
from polypfed.core.rundir import load_model
from tests.live.nvflare import study
from tests.live.nvflare.processes import Deployment, edit

pytestmark = [pytest.mark.live, pytest.mark.slow]
SITES = ["site-1", "site-2", "site-3"]
STRATEGIES = ["fedavg", "fedadam", "scaffold"]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    pytest.importorskip("tenseal")
    made = Deployment(tmp_path_factory.mktemp("private"), SITES)
    try:
        made.start_all()
        yield made
    finally:
        assert made.close() == []


def models(folder: Path) -> set[str]:
    """SHA-256 of the models that lie at the sites below this folder."""
    found = [load_model(path)[1] for path in folder.glob("sites/*/model.safetensors")]
    return {hashlib.sha256(model.tobytes()).hexdigest() for model in found}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mode", ["he", "secagg"])
def test_the_bits_of_local(deployment: Deployment, tmp_path: Path, mode: str, strategy: str) -> None:
    settings = {"strategy": strategy, "privacy": mode, "quorum": 3}
    fed = Federation(clients=study.clients(SITES), **study.settings(**settings))
    here = fed.run(2, Local(), tmp_path)
    edit(deployment, **settings)
    result = deployment.conduct(f"{mode}-{strategy}", rounds=2)
    run = deployment.run_folder(f"{mode}-{strategy}")
    assert result["status"] == "completed"
    assert deployment.lines("failures.jsonl", run.name) == []
    if mode == "secagg":
        assert here.model is not None
        assert result["sha256"] == hashlib.sha256(here.model.tobytes()).hexdigest()
        return
    assert not (run / "model.safetensors").exists()  # it lies at the sites
    ours = {digest for n in SITES for digest in models(only_run(deployment.kit(n) / "state", run))}
    assert ours == models(tmp_path)
    assert len(ours) == 1


def only_run(state: Path, run: Path) -> Path:
    """The folder at a site of the run that the server keeps in `run`."""
    return state / str(json.loads((run / "run.json").read_text())["run"])


def test_the_server_holds_nothing_that_opens_an_update(deployment: Deployment) -> None:
    kit = deployment.server
    assert sorted(p.name for p in (kit / "local" / "keys").iterdir()) == ["identity.key", "roster.json"]
    private = [deployment.kit(n) / "local" / "keys" / "identity.key" for n in SITES]
    secrets = [path.read_bytes()[-64:] for path in private]
    for path in kit.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(secret in data for secret in secrets), path
            assert b"tenseal" not in data.lower() or path.suffix in (".log", ".txt"), path
