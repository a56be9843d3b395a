"""The simulation engine for real: Ray, its actors, and clients that misbehave in them."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

from polypfed import Federation, Task
from polypfed.backends import Flower, Host, Local
from polypfed.core.errors import ConfigError
from polypfed.core.rundir import load_model
from polypfed.privacy import stages
from polypfed.strategies import FedAdam, FedAvg, Scaffold
from polypfed.testing import check_backend
from tests.problems import Odd, bits, divide, exit_hard, scores, sites, sleep_long
from tests.strategies.test_scaffold_run import states_on_disk

pytestmark = [
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),  # ray's
]


LONG = pytest.mark.skipif("POLYPFED_LONG" not in os.environ, reason="four more starts of Ray; set POLYPFED_LONG")
ALWAYS_AND_MORE = [Scaffold(), pytest.param(FedAvg(), marks=LONG), pytest.param(FedAdam(), marks=LONG)]


@pytest.fixture
def flower() -> Iterator[Flower]:
    backend = Flower(workers=2)
    yield backend
    backend.close()
    gc.collect()  # what ray leaves open is reported here, not in the next test


def test_it_is_a_backend_that_hosts() -> None:
    assert isinstance(Flower(), Host)


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"cpus": 0}, {"cpus": 0.5}, {"gpus": -1.0}])
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Flower(**wrong)


@pytest.mark.parametrize("strategy", [FedAvg(), FedAdam(), Scaffold(eta=0.7)], ids=["fedavg", "fedadam", "scaffold"])
def test_the_bits_of_local(tmp_path: Path, flower: Flower, strategy: Any) -> None:
    fed = Federation(clients=sites(5), strategy=strategy, per_round=3, evaluate="matrix", quorum=3)
    there = fed.run(4, flower, tmp_path / "there")
    here = Federation(clients=sites(5), strategy=strategy, per_round=3, evaluate="matrix", quorum=3).run(
        4, Local(), tmp_path / "here"
    )
    assert not there.failures
    assert bits(there) == bits(here)
    assert scores(there) == scores(here)
    assert states_on_disk(tmp_path / "there") == states_on_disk(tmp_path / "here")


@pytest.mark.parametrize("mode", ["he", "secagg"])
@pytest.mark.parametrize("strategy", ALWAYS_AND_MORE, ids=["scaffold", "fedavg", "fedadam"])
def test_the_bits_of_local_under_encryption_and_masks(tmp_path: Path, flower: Flower, strategy: Any, mode: Any) -> None:
    pytest.importorskip("tenseal")
    given = stages(mode, cap=None if isinstance(strategy, Scaffold) else 100)
    settings = {"strategy": strategy, "stages": given, "quorum": 3}
    there = Federation(clients=sites(3), **settings).run(2, flower, tmp_path / "there")
    here = Federation(clients=sites(3), **settings).run(2, Local(), tmp_path / "here")
    assert not there.failures
    if mode == "secagg":
        assert bits(there) == bits(here)
        return
    for client in sites(3):
        place = f"sites/{client.name}/model.safetensors"
        models = [load_model(tmp_path / run / place)[1] for run in ("there", "here")]
        assert models[0].tobytes() == models[1].tobytes()


def test_misbehaviour_costs_a_site_its_round_and_nobody_else(flower: Flower) -> None:
    """Every round: one kills its actor, one hangs until it is cut off, one raises; all serve the round after."""
    acts = {"site-00": exit_hard, "site-01": sleep_long, "site-02": divide}
    clients = [Odd(c, acts[c.name], when=(1,)) if c.name in acts else c for c in sites(4)]
    flower.host(clients, None)
    vectors = {"model": np.zeros(3, np.float32)}

    def ask(number: int, deadline: float) -> dict[str, str]:
        tasks = {n: Task(number, "fit", vectors, {"run": "r"}) for n in flower.clients}
        replies = list(flower.exchange(tasks, deadline))
        assert sorted(r.client for r in replies) == sorted(tasks)
        return {r.client: getattr(r, "reason", "") for r in replies}

    assert set(ask(0, 60.0).values()) == {""}  # the actors have started
    begun = monotonic()
    assert ask(1, 15.0) == {"site-00": "lost", "site-01": "deadline", "site-02": "crashed", "site-03": ""}
    assert 14.9 < monotonic() - begun < 25
    assert set(ask(2, 60.0).values()) == {""}


def test_closing_ends_an_actor_that_is_still_busy(flower: Flower, tmp_path: Path) -> None:
    flower.host([Odd(c, sleep_and_tell(tmp_path / "pid")) for c in sites(1)], None)
    task = Task(1, "fit", {"model": np.zeros(3, np.float32)}, {"run": "r"})
    replies = flower.exchange({"site-00": task}, 1.0)
    begun = monotonic()
    assert next(replies).reason == "deadline"  # type: ignore[union-attr]
    flower.close()
    assert monotonic() - begun < 50  # the client would sleep for a minute
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIG_DFL)


class sleep_and_tell:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, site: Odd, task: Task) -> None:
        self.path.write_text(str(os.getpid()))
        sleep_long(site, task)


def test_clients_that_cannot_be_sent_are_refused_with_a_remedy(flower: Flower) -> None:
    import threading

    clients = sites(1)
    clients[0].loss = threading.Lock()  # type: ignore[assignment]
    flower.host(clients, None)
    with pytest.raises(ConfigError, match=r"^backend: the clients cannot be sent to an actor .* first used$"):
        list(flower.exchange({"site-00": Task(1, "fit", {}, {})}, 1.0))


@pytest.mark.skipif("POLYPFED_LONG" not in os.environ, reason="four starts of Ray; set POLYPFED_LONG")
def test_the_contract_of_a_backend() -> None:
    check_backend(lambda: Flower(workers=2))
    gc.collect()
