"""Three sites over TLS, each with its keys: equal bits in clear, rounded, encrypted and masked; no key at the server.

One deployment serves all runs, one after the other.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polypfed import Federation
from polypfed.backends import Local
from polypfed.core.rundir import load_model
from tests.live.flower import study
from tests.live.flower.processes import Deployment

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]
NAMES = ["a", "b", "c"]
ALWAYS = [("he", "scaffold"), ("secagg", "fedadam"), ("rounded", "fedadam")]
ALL = [
    (mode, strategy) for mode in ("plain", "rounded", "he", "secagg") for strategy in ("fedavg", "fedadam", "scaffold")
]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    pytest.importorskip("tenseal")
    found = Deployment(tmp_path_factory.mktemp("private"), NAMES)
    try:
        found.start_all()
        yield found
    finally:
        found.close()


def cases() -> list[Any]:
    skip = pytest.mark.skipif("POLYPFED_LONG" not in os.environ, reason="twelve runs of Flower; set POLYPFED_LONG")
    return [pytest.param(*case, marks=() if case in ALWAYS else skip, id="-".join(case)) for case in ALL]


def at_sites(folder: Path) -> set[str]:
    """SHA-256 of the models that the sites below this folder have reached."""
    found = [load_model(path)[1] for path in folder.glob("**/sites/*/model.safetensors")]
    assert len(found) == len(NAMES)
    return {hashlib.sha256(model.tobytes()).hexdigest() for model in found}


@pytest.mark.parametrize(("mode", "strategy"), list(cases()))
def test_the_bits_of_local(deployment: Deployment, tmp_path: Path, mode: str, strategy: str) -> None:
    settings = {"strategy": strategy, "mode": mode, "quorum": 3, "evaluate": "global"}
    fed = Federation(clients=study.clients(NAMES), **study.settings(**settings))
    here = fed.run(2, Local(), tmp_path / "run")
    for folder in (deployment.folder / "sites").glob("*/state"):
        for old in folder.glob("**/model.safetensors"):  # of the run before
            old.unlink()
    deployment.serve(f"{mode}-{strategy}", rounds=2, **settings)
    outcome = deployment.run(240)
    assert (outcome["status"], outcome["rounds"], outcome["code"]) == ("completed", 2, 0)
    assert not deployment.failures()
    if mode == "he":  # the model lies at the sites
        assert outcome["sha256"] is None
        assert not (deployment.directory / "model.safetensors").exists()
        assert at_sites(deployment.folder / "sites") == at_sites(tmp_path / "run")
        return
    assert here.model is not None
    assert outcome["sha256"] == hashlib.sha256(here.model.tobytes()).hexdigest()


def test_the_server_holds_nothing_that_opens_an_update(deployment: Deployment) -> None:
    assert sorted(p.name for p in (deployment.server / "keys").iterdir()) == ["identity.key", "roster.json"]
    files = [deployment.folder / "sites" / name / "keys" / "identity.key" for name in NAMES]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    private = [path.read_bytes()[-64:][i : i + 32] for path in files for i in (0, 32)]
    assert len(set(private)) == 6
    for path in deployment.server.rglob("*"):
        assert not path.is_file() or not any(key in path.read_bytes() for key in private), path
