"""NVFlare's simulator for real: its server and site processes, and clients that misbehave behind them."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest

from polypfed import Federation, NumpyClient, Task, Update
from polypfed.backends import Host, Local
from polypfed.backends.nvflare import NVFlare, simulation
from polypfed.backends.nvflare.simulation import family
from polypfed.core.errors import ConfigError
from polypfed.federation import Event
from polypfed.privacy.modes import stages
from polypfed.privacy.stage import Encrypt, Quantise
from polypfed.strategies import FedAdam, FedAvg, Scaffold
from tests.live.nvflare import study
from tests.problems import ROOT, Odd, Quadratic, bits, divide, exit_hard, scores, sites, sleep_long

pytestmark = pytest.mark.live
PATIENT = 60.0
FILTERS = "nvflare.app_common.filters"


@pytest.fixture
def nvflare(request: pytest.FixtureRequest) -> Iterator[NVFlare]:
    backend = NVFlare(**getattr(request, "param", {"workers": 2}))
    yield backend
    processes = family(backend._running._process.pid) if backend._running and backend._running._process else []
    backend.close()
    sleep(0.5)
    assert not [pid for pid in processes if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def task(number: int, kind: Any = "fit", **config: Any) -> Task:
    return Task(number, kind, {"model": np.zeros(3, np.float32)}, {"run": "f00", **config})


def ask(backend: NVFlare, number: int, deadline: float = PATIENT) -> dict[str, Any]:
    replies = list(backend.exchange({n: task(number) for n in backend.clients}, deadline))
    assert sorted(r.client for r in replies) == list(backend.clients)  # everyone is answered for, once
    return {r.client: r for r in replies}


def reasons(replies: dict[str, Any]) -> dict[str, str]:
    return {n: getattr(r, "reason", "") for n, r in sorted(replies.items())}


def states(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("sites/*/state/*"))}


def test_it_is_a_backend_that_hosts() -> None:
    assert isinstance(NVFlare(), Host)


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"workers": 0}, {"threads": 1.5}, {"workers": True}])
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        NVFlare(**wrong)


def same_as_local(there: NVFlare, folder: Path, strategy: Any, count: int, rounds: int, **settings: Any) -> None:
    def fed() -> Federation:
        return Federation(clients=sites(count), strategy=strategy, quorum=2, **settings)

    remote, here = fed().run(rounds, there, folder / "there"), fed().run(rounds, Local(), folder / "here")
    assert not remote.failures
    assert bits(remote) == bits(here)
    assert scores(remote) == scores(here)
    assert states(folder / "there") == states(folder / "here")


STRATEGIES = {"fedavg": FedAvg(), "fedadam": FedAdam(), "scaffold": Scaffold(eta=0.7)}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_the_bits_of_local(tmp_path: Path, nvflare: NVFlare, strategy: Any) -> None:
    same_as_local(nvflare, tmp_path, strategy, 3, 3, evaluate="matrix", per_round=2)


@pytest.mark.parametrize("nvflare", [{"threads": 1}], indirect=True)
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_fewer_threads_than_sites_lose_nothing(tmp_path: Path, nvflare: NVFlare, strategy: Any) -> None:
    """A new site process for every task, as the simulator does it."""
    same_as_local(nvflare, tmp_path, strategy, 2, 2, evaluate="off")
    assert len(states(tmp_path / "there")) >= (2 if strategy == STRATEGIES["scaffold"] else 0)


def minus_one(x: np.ndarray) -> np.ndarray:
    return -np.ones_like(x)


def test_nvflares_hello_numpy_comes_out_as_it_does_there(nvflare: NVFlare) -> None:
    """Its example: [[1, 2, 3], [4, 5, 6], [7, 8, 9]], two sites that add one to every weight, three rounds."""
    start = np.arange(1, 10, dtype=np.float32).reshape(3, 3)
    clients = [NumpyClient(f"site-{i}", minus_one, start, lr=1.0) for i in (1, 2)]
    history = Federation(clients=clients, strategy=FedAvg(), quorum=2, evaluate="off").run(3, nvflare)
    assert history.model is not None
    assert history.model.reshape(3, 3).tolist() == [[4, 5, 6], [7, 8, 9], [10, 11, 12]]


RECIPE = f"""
from nvflare.recipe.{{module}} import {{env}}
from polypfed.backends.nvflare.recipe import PolypRecipe

if __name__ == "__main__":
    sites = {{sites}}
    recipe = PolypRecipe("study", code={study.__file__!r}, client_settings=dict(names=sites), min_clients=len(sites))
    run = recipe.execute({{env}}({{settings}}))
    print(run.get_result(timeout=150, clean_up=False))
"""


@pytest.mark.parametrize("env", ["SimEnv", "PocEnv"])
def test_a_recipe_runs_with_the_bits_of_local(tmp_path: Path, env: str) -> None:
    """As an NVFlare user runs any other recipe; the study's code goes with the job. PocEnv: real processes, mTLS."""
    sites = ["site-1", "site-2"]
    module, settings = "sim_env" if env == "SimEnv" else "poc_env", "num_clients=2"
    settings += f", workspace_root={str(tmp_path)!r}" if env == "SimEnv" else ""
    (tmp_path / "recipe.py").write_text(RECIPE.format(module=module, env=env, settings=settings, sites=sites))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NVFLARE_POC_WORKSPACE": str(tmp_path / "poc")}
    command = [sys.executable, str(tmp_path / "recipe.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = tmp_path.glob("**/server/runs/study/result.json")
    result = json.loads(path.read_text())
    local = Federation(clients=study.clients(sites), **study.settings()).run(3, Local())
    assert result == {"status": "completed", "rounds": 3, "sha256": hashlib.sha256(bits(local)).hexdigest()}


def test_misbehaviour_costs_a_site_its_round_and_nobody_else(nvflare: NVFlare) -> None:
    acts = {"site-00": exit_hard, "site-01": sleep_long, "site-02": divide}
    nvflare.host([Odd(c, acts[c.name], when=(1,)) if c.name in acts else c for c in sites(4)], None)
    assert set(reasons(ask(nvflare, 0)).values()) == {""}
    begun = monotonic()
    found = reasons(ask(nvflare, 1, 4.0))
    assert found == {"site-00": "lost", "site-01": "deadline", "site-02": "crashed", "site-03": ""}
    assert 3.9 < monotonic() - begun < 9
    assert set(reasons(ask(nvflare, 2)).values()) == {""}


def processes(backend: NVFlare, word: str) -> list[int]:
    assert backend._running is not None
    assert backend._running._process is not None
    found = family(backend._running._process.pid)
    return [pid for pid in found if word in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")]


def kill(backend: NVFlare, word: str) -> None:
    assert backend._running is not None
    assert backend._running._process is not None
    for pid in family(backend._running._process.pid):
        if word in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "):
            os.kill(pid, signal.SIGKILL)
            return
    raise AssertionError(f"no process {word}")


def test_killed_site_processes_and_servers_cost_a_round_at_most_and_no_state(nvflare: NVFlare) -> None:
    """Between rounds and within one; with nothing but memory and a scratch folder to keep SCAFFOLD's controls in."""
    died: list[int] = []

    def disturb(event: Event) -> None:
        if event.kind == "saved" and event.round == 1:
            kill(nvflare, "--client site-01 ")
        if event.kind == "fit" and event.round == 3 and not died:  # one has answered, the other has not
            died.append(event.round)
            kill(nvflare, "nvflare.simulate")

    def fed() -> Federation:
        return Federation(clients=sites(2, pause=0.05), strategy=Scaffold(), quorum=2, evaluate="off")

    found = fed().run(4, nvflare, None, disturb)
    assert died == [3]
    assert {(f.round, f.reason) for f in found.failures} <= {(2, "lost"), (3, "lost")}
    assert bits(found) == bits(fed().run(4, Local()))


def test_a_site_process_that_ends_before_it_has_work_is_seen_and_the_simulator_starts_anew(
    nvflare: NVFlare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVFlare goes on without such a site and says nothing; a round would wait for it until the deadline."""
    died: list[int] = []
    census = simulation._with_process

    def killing(pid: int) -> set[str]:
        alive = census(pid)
        if not died and "site-01" in alive:
            died.append(next(p for p in family(pid) if "--client\0site-01\0" in Path(f"/proc/{p}/cmdline").read_text()))
            os.kill(died[0], signal.SIGKILL)
        return alive

    monkeypatch.setattr(simulation, "_with_process", killing)
    nvflare.host(sites(2), None)
    assert set(reasons(ask(nvflare, 0)).values()) == {""}
    assert died


@pytest.mark.parametrize(
    ("nvflare", "check"),
    [
        (
            {"filters": [{"path": f"{FILTERS}.percentile_privacy.PercentilePrivacy", "args": {"gamma": 0.01}}]},
            lambda delta, dc: 0 < np.abs(delta).max() <= 0.0101 and 0 < np.abs(dc).max() <= 0.0101,
        ),
        (
            {"filters": [{"path": f"{FILTERS}.svt_privacy.SVTPrivacy", "args": {"fraction": 0.4, "replace": False}}]},
            lambda delta, dc: np.count_nonzero(delta) == 2 and np.count_nonzero(dc) == 2,
        ),
        (
            {"filters": [{"path": f"{FILTERS}.exclude_vars.ExcludeVars", "args": {"exclude_vars": ["x"]}}]},
            lambda delta, dc: not delta.any() and not dc.any(),
        ),
    ],
    indirect=["nvflare"],
    ids=["percentile", "svt", "exclude-vars"],
)
def test_nvflares_privacy_filters_act_on_deltas_and_control_variates(nvflare: NVFlare, check: Any) -> None:
    nvflare.host(sites(1), None)
    vectors = {"model": np.zeros(3, np.float32), "c": np.zeros(3, np.float32)}
    config = {"run": "f00", "strategy": {"name": "scaffold"}}
    (reply,) = nvflare.exchange({"site-00": Task(1, "fit", vectors, config)}, PATIENT)
    honest = next(iter(hosted(vectors, config)))
    assert isinstance(reply, Update)
    assert isinstance(honest, Update)
    assert np.abs(honest.vectors["delta"]).min() > 0.02
    assert set(reply.vectors) == {"delta", "dc"}
    assert check(reply.vectors["delta"], reply.vectors["dc"])


def hosted(vectors: Any, config: Any) -> Iterator[Any]:
    local = Local()
    local.host(sites(1), None)
    yield from local.exchange({"site-00": Task(1, "fit", vectors, config)}, PATIENT)


def staged(mode: Any, strategy: Any) -> Federation:
    clients = [
        NumpyClient(f"s{i}", Quadratic(1.0 + i, 0.5 * i), np.linspace(0.1, 1, 50), steps=3 + i, weight=50 + 10 * i)
        for i in range(3)
    ]
    cap = 100 if strategy.reducer.weights == "examples" else None
    codec = Quantise(bits=11, cap=cap, bound=1.0)
    lines = {"he": [codec, Encrypt(snapshot=2)], "rounded": [codec]}
    line = lines.get(mode) or stages(mode, cap=cap, bound=1.0, bits=11)
    return Federation(clients=clients, strategy=strategy, stages=line, quorum=3)


# With one thread each of the steps of a masked round would start three processes: half a minute a round.
SECRET = [(mode, name, 2) for mode in ("he", "secagg") for name in STRATEGIES]
SECRET += [("he", "scaffold", 1), ("rounded", "scaffold", 2)]


@pytest.mark.parametrize(
    ("mode", "name", "nvflare"),
    [(mode, name, {"workers": 2} if threads == 2 else {"threads": 1}) for mode, name, threads in SECRET],
    indirect=["nvflare"],
    ids=[f"{mode}-{name}-{threads}" for mode, name, threads in SECRET],
)
def test_encrypted_masked_and_rounded_updates_give_the_bits_of_local(
    tmp_path: Path, nvflare: NVFlare, mode: Any, name: str
) -> None:
    """Ciphertext and keys travel as opaque bytes; the secrets of a masked sum live on in the site's process."""
    pytest.importorskip("tenseal")
    there = staged(mode, STRATEGIES[name]).run(2, nvflare, tmp_path / "there")
    here = staged(mode, STRATEGIES[name]).run(2, Local(), tmp_path / "here")
    assert not there.failures
    if mode != "he":
        assert bits(there) == bits(here)
    models = [
        sorted(p.read_bytes() for p in (tmp_path / d).glob("sites/*/model.safetensors")) for d in ("there", "here")
    ]
    assert models[0] == models[1]
    assert len(models[0]) == (3 if mode == "he" else 0)  # under encryption only the sites have the model
