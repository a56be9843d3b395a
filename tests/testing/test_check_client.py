"""Our own clients and backends pass the checks; those that break a rule are told which."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from polypfed import Evaluation, NumpyClient, Task, Update
from polypfed.backends import Local
from polypfed.strategies import FedAvg, FedNova, FedProx, Scaffold
from polypfed.testing import ContractError, SampleClient, check_backend, check_client
from tests.problems import Quadratic

ALL = (FedAvg(), FedProx(mu=0.1), FedNova(), Scaffold(), Scaffold(option="I"))


def test_numpy_clients_keep_the_contract() -> None:
    check_client(lambda: NumpyClient("a", Quadratic(2, 1), [0.0, 3.0], steps=3), strategies=ALL)
    check_client(lambda: SampleClient("site-00"), strategies=ALL)


def test_torch_clients_keep_the_contract() -> None:
    torch = pytest.importorskip("torch")
    from polypfed.clients import TorchClient

    rng = np.random.default_rng(0)
    data = rng.normal(size=(11, 4)).astype(np.float32), rng.integers(0, 3, 11)
    nn, sgd = torch.nn, partial(torch.optim.SGD, lr=0.1, momentum=0.9)

    def make() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 3))
        return TorchClient("a", net, nn.functional.cross_entropy, data, batch=4, epochs=2, optimizer=sgd)

    check_client(make, strategies=ALL)


@dataclass
class Wrong(SampleClient):
    how: str = ""

    def initial(self) -> Any:
        spec, x = super().initial()
        return spec, x + np.float32(np.random.default_rng().normal()) if self.how == "start" else x

    def fit(self, task: Task) -> Update:
        good = super().fit(task)
        delta = good.vectors["delta"]
        changed = {
            "dtype": delta.astype(np.float64),
            "shape": delta[:-1],
            "nan": delta * np.float32(np.nan),
            "random": delta + np.float32(np.random.default_rng().normal()),
        }
        if self.how == "writes":
            task.vectors["model"].setflags(write=True)
            task.vectors["model"][:] = 0
        if self.how == "weight":
            return replace(good, weight=-1)
        return replace(good, vectors={**good.vectors, "delta": changed.get(self.how, delta)})

    def evaluate(self, task: Task) -> Evaluation:
        if self.how == "score":
            return Evaluation(self.name, task.round, {"loss": float("nan")}, 1)
        if self.how == "trains":
            self._kept = {"c": np.zeros(1, np.float32)}
        return super().evaluate(task)

    def state(self) -> bytes:
        return b"" if self.how == "forgets" else super().state()

    def restore(self, state: bytes) -> None:
        if self.how != "clings" or state:
            super().restore(state)


@pytest.mark.parametrize(
    ("how", "rule"),
    [
        ("start", "start"),
        ("dtype", "fits"),
        ("shape", "fits"),
        ("nan", "fits"),
        ("weight", "fits"),
        ("writes", "fits"),
        ("random", "repeats"),
        ("forgets", "restores"),
        ("clings", "restores"),
        ("score", "evaluates"),
        ("trains", "evaluates"),
    ],
)
def test_a_client_that_breaks_a_rule_is_told_which(how: str, rule: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_client(lambda: Wrong("site-00", how=how))
    assert caught.value.rule == rule, caught.value


def test_local_keeps_the_contract() -> None:
    check_backend(Local)


@pytest.mark.slow
def test_local_keeps_the_contract_with_worker_processes() -> None:
    check_backend(lambda: Local(workers=2))


class Twice(Local):
    """Every answer comes twice."""

    def exchange(self, tasks: Any, deadline: float) -> Any:
        for reply in super().exchange(tasks, deadline):
            yield reply
            yield reply


class Forgetful(Local):
    """One site is not heard of."""

    def exchange(self, tasks: Any, deadline: float) -> Any:
        yield from list(super().exchange(tasks, deadline))[:-1]


class Clings(Local):
    """Goes on hosting."""

    def close(self) -> None:
        pass


class Coarse(Local):
    """Half precision on the wire."""

    def exchange(self, tasks: Any, deadline: float) -> Any:
        for reply in super().exchange(tasks, deadline):
            if isinstance(reply, Update):
                coarse = {k: v.astype(np.float16).astype(np.float32) for k, v in reply.vectors.items()}
                reply = replace(reply, vectors=coarse)
            yield reply


class Remote:
    """Runs nobody."""

    clients = ()

    def exchange(self, tasks: Any, deadline: float) -> Any:
        yield from ()


@pytest.mark.parametrize(
    ("make", "rule"),
    [(Twice, "answers"), (Forgetful, "answers"), (Clings, "answers"), (Coarse, "bits"), (Remote, "answers")],
)
def test_a_backend_that_breaks_a_rule_is_told_which(make: Any, rule: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_backend(make)
    assert caught.value.rule == rule, caught.value
    assert make.__name__ in str(caught.value)
