"""Ditto: closed forms of the own model, and what it must leave alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import Federation, NumpyClient
from polypfed.backends import Local
from polypfed.core.errors import ConfigError
from polypfed.core.messages import Update, encode
from polypfed.strategies import Ditto, FedAdam, FedAvg, Scaffold, Strategy
from polypfed.strategies.ditto import Anchored, DittoClient
from polypfed.testing import sample_sites
from polypfed.testing.carried import Carried
from tests.problems import Quadratic, bits, scores

A, B = (1.0, 4.0, 2.5), (0.0, 1.0, -0.7)


def own_models(strategy: Strategy, rounds: int, steps: int, lrs: Any) -> tuple[Any, list[Any]]:
    """The own models, and the shared one at the start of each round."""
    clients = [NumpyClient(f"s{i}", Quadratic(A[i], B[i]), [0.3], lr=lrs[i], steps=steps) for i in range(3)]
    backend = Carried()
    seen: list[Any] = []

    def watch(event: Any) -> None:
        if event.kind == "saved" and event.round:
            seen[:] = [site._work._own[0] for site in backend.inner._sites.values()]

    Federation(clients=clients, strategy=strategy, evaluate="off").run(rounds, backend, listen=watch)
    shared = {t.round: t.vectors["model"][0] for _, t in backend.tasks}
    return seen, [float(shared[r]) for r in range(1, rounds + 1)]


@pytest.mark.parametrize("strength", [0.0, 0.5, 8.0])
def test_one_exact_step_gives_the_closed_form(strength: float) -> None:
    """v = (a b + lambda x) / (a + lambda), x the model received in the round."""
    lrs = [1 / (a + strength) for a in A]
    own, shared = own_models(Ditto(strength=strength), 3, 1, lrs)
    wanted = [(a * b + strength * shared[-1]) / (a + strength) for a, b in zip(A, B, strict=True)]
    assert own == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("inner", [FedAvg(), FedAdam(), Scaffold()], ids=lambda s: type(s).__name__)
def test_local_steps_go_on_from_the_own_model_around_the_received_one(inner: Strategy) -> None:
    own, shared = own_models(Ditto(strength=0.7, inner=inner), 4, 3, (0.1, 0.05, 0.1))
    wanted = []
    for a, b, lr in zip(A, B, (0.1, 0.05, 0.1), strict=True):
        v = 0.3
        for x in shared:
            for _ in range(3):
                v -= lr * (a * (v - b) + 0.7 * (v - x))
        wanted.append(v)
    assert own == pytest.approx(wanted, abs=2e-6)


def test_lambda_zero_is_training_alone_and_a_large_one_the_shared_model() -> None:
    own, _ = own_models(Ditto(strength=0), 200, 2, (0.1, 0.1, 0.1))
    assert own == pytest.approx(B, abs=1e-5)
    own, shared = own_models(Ditto(strength=5000), 30, 1, [1 / (a + 5000) for a in A])
    assert own == pytest.approx([shared[-1]] * 3, abs=2e-3)


@pytest.mark.parametrize("inner", [FedAvg(), Scaffold()], ids=lambda s: type(s).__name__)
def test_the_shared_model_and_its_history_are_those_of_the_inner_strategy(inner: Strategy) -> None:
    dressed = Federation(clients=sample_sites(), strategy=Ditto(inner=inner), per_round=4).run(5, Local())
    plain = Federation(clients=sample_sites(), strategy=inner, per_round=4).run(5, Local())
    assert bits(dressed) == bits(plain)
    others = [r for r in scores(dressed) if not r[2].startswith("own_")]
    assert others == scores(plain)
    assert dressed.values("own_loss", "site-01")[5] != plain.values("loss", "site-01")[5]
    assert dressed.values("own_loss")[5] < plain.values("loss")[5]


def test_the_own_model_is_never_sent() -> None:
    """No value of any own model is on the wire, in any message of any round."""
    backend, own = Carried(), []

    def watch(event: Any) -> None:
        if event.kind == "saved" and event.round:
            own.extend(site._work._own.copy() for site in backend.inner._sites.values())

    Federation(clients=sample_sites(), strategy=Ditto()).run(3, backend, listen=watch)
    fits = [r for r in backend.replies if isinstance(r, Update)]
    assert all(set(r.vectors) == {"delta"} for r in fits)
    assert all(set(t.vectors) == {"model"} for _, t in backend.tasks)
    carried = b"".join(encode(m) for m in [*fits, *(t for _, t in backend.tasks)])
    assert len(own) == 18
    assert not [v for model in own for v in model[:9] if v.tobytes() in carried]


def test_a_resume_gives_the_same_own_models(tmp_path: Path) -> None:
    def fed() -> Federation:
        return Federation(clients=sample_sites(), strategy=Ditto(inner=Scaffold()), per_round=4)

    straight = fed().run(5, Local(), tmp_path / "a")
    fed().run(2, Local(), tmp_path / "b")
    assert scores(fed().resume(tmp_path / "b", 5, Local())) == scores(straight)
    kept = [{p.name: p.read_bytes() for p in (tmp_path / run).glob("sites/*/state/*")} for run in "ab"]
    assert kept[0] == kept[1] != {}


def test_a_site_that_has_not_trained_shows_the_shared_model() -> None:
    client = DittoClient(sample_sites()[0], Ditto())
    x = np.ones(13, np.float32)
    assert client.own(x) is x


def test_the_client_half_is_no_strategy_for_a_federation() -> None:
    with pytest.raises(ConfigError, match=r"^strategy: is the client half of Ditto. Use Ditto"):
        Federation(clients=sample_sites(), strategy=Anchored(strength=1.0)).run(1, Local())
