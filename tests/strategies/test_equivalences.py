"""What must be equal is: bit for bit where the operations coincide, to rounding where they do not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed import Federation, NumpyClient
from polypfed.backends import Local
from polypfed.core.reduce import Mean
from polypfed.strategies import (
    Cohort,
    Ditto,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedDyn,
    FedNova,
    FedProx,
    Scaffold,
    Strategy,
)
from polypfed.strategies.base import uploads
from tests.problems import Quadratic, sites

EVEN = FedAvg(reducer=Mean("uniform"))


def after(rounds: int, strategy: Strategy, clients: Any = None, **more: Any) -> Any:
    clients = sites() if clients is None else clients
    model = Federation(clients=clients, strategy=strategy, evaluate="off", **more).run(rounds, Local()).model
    assert model is not None
    return model


@pytest.mark.parametrize("per_round", [None, 2])
@pytest.mark.parametrize(
    ("strategy", "other", "rounds"),
    [
        (FedAvgM(momentum=0), FedAvg(), 5),
        (FedAvgM(momentum=0, eta=0.3), FedAvg(eta=0.3), 5),
        (FedProx(mu=0), FedAvg(), 5),
        (Scaffold(), EVEN, 1),
        (Scaffold(option="I"), EVEN, 1),
        (Ditto(inner=FedAvgM()), FedAvgM(), 4),
        (Scaffold(weights={f"site-{i:02d}": 3.0 for i in range(4)}), Scaffold(), 4),
    ],
    ids=lambda s: type(s).__name__,
)
def test_bit_for_bit(strategy: Strategy, other: Strategy, rounds: int, per_round: int | None) -> None:
    found, wanted = (after(rounds, s, per_round=per_round) for s in (strategy, other))
    if isinstance(strategy, Scaffold) and strategy.weights:
        assert found == pytest.approx(wanted, abs=1e-6)  # 3 x + 3 y over 6 rounds otherwise than x + y over 2
    else:
        assert found.tobytes() == wanted.tobytes()


def test_they_are_not_all_the_same() -> None:
    """Else the comparisons above would say nothing."""
    found = {after(3, s).tobytes() for s in (FedAvg(), FedAvgM(), FedProx(), Scaffold(), FedNova(), EVEN, FedDyn())}
    assert len(found) == 7


def even_steps() -> list[NumpyClient]:
    return [replace(c, steps=4) for c in sites()]


def test_fednova_with_equal_steps_is_fedavg() -> None:
    assert after(5, FedNova(), even_steps()) == pytest.approx(after(5, FedAvg(), even_steps()), abs=2e-6)
    assert np.abs(after(5, FedNova()) - after(5, FedAvg())).max() > 1e-2


def test_feddyn_s_first_round_is_the_step_of_its_box_from_fedprox_s() -> None:
    """g_i = h = 0: each site does what FedProx(alpha) does, and the server doubles the even mean: - h/alpha = D."""
    start = sites()[0].initial()[1]
    prox = after(1, FedProx(mu=0.5, reducer=Mean("uniform")))
    assert after(1, FedDyn(alpha=0.5)) == pytest.approx(prox + (prox - start), abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_fedadam_tends_to_fedavgm_as_tau_grows(seed: int) -> None:
    """m / (sqrt v + tau) -> m / (2 tau), v staying near tau^2: with eta = 2 tau the damped form of momentum."""
    d = np.random.default_rng(seed).normal(size=(4, 5)).astype(np.float32)
    cohort, x, m = Cohort(1, ("a",), (1,), 1), np.zeros(5, np.float32), np.zeros(5)
    adam = FedAdam(tau=1e4, eta=2e4, beta2=0.99999)
    state, wanted = adam.init(x), np.zeros(5)
    for row in d:
        x, state = adam.step(x, state, {"delta": row}, cohort)
        m = 0.9 * m + 0.1 * row
        wanted = wanted + m
    assert x == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    "strategy",
    [
        FedAvg(),
        FedAvgM(),
        FedAdam(),
        FedProx(),
        Scaffold(),
        Scaffold(option="I"),
        FedNova(),
        FedDyn(alpha=0.5),
        Ditto(),
    ],
    ids=lambda s: type(s).__name__,
)
def test_identical_clients_are_one_client(strategy: Strategy) -> None:
    def same(count: int) -> list[NumpyClient]:
        return [NumpyClient(f"s{i}", Quadratic(1.3, 0.7), [0.2, -1], lr=0.1, steps=3, weight=7) for i in range(count)]

    assert after(4, strategy, same(5)) == pytest.approx(after(4, strategy, same(1)), abs=2e-6)


def test_all_fresh_in_one_buffer_is_even_averaging() -> None:
    """Every site at the same pace, one buffer that takes them all: nobody is stale."""
    assert after(5, FedBuff(buffer=4, spread=0)).tobytes() == after(5, EVEN).tobytes()
    assert (
        after(5, FedBuff(buffer=4, spread=0, eta=0.5)).tobytes()
        == after(5, FedAvg(eta=0.5, reducer=Mean("uniform"))).tobytes()
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([FedAvg(), FedAvgM(), FedAdam(), Scaffold(), FedNova(), FedDyn()]))
def test_moving_everything_moves_the_result(seed: int, strategy: Strategy) -> None:
    """Shifting x and all y_i by one vector leaves the deltas alone, and shifts the new model by it."""
    rng = np.random.default_rng(seed)
    x, shift, d = (rng.normal(size=4).astype(np.float32) for _ in range(3))
    extra = {n: rng.uniform(0.5, 1, k).astype(np.float32) for n, k in uploads(strategy, 4).items()}
    mean, cohort = {"delta": d, **extra}, Cohort(1, ("a", "b"), (1, 2), 3)
    here, there = (strategy.step(v, strategy.init(v), mean, cohort)[0] for v in (x, x + shift))
    assert there - shift == pytest.approx(here, abs=1e-5)


@pytest.mark.parametrize("strategy", [FedAvg(), FedAdam(), Scaffold(), FedNova()], ids=lambda s: type(s).__name__)
def test_scaling_all_examples_changes_no_more_than_rounding(strategy: Strategy) -> None:
    scaled = [replace(c, weight=c.weight * 37) for c in sites()]
    assert after(4, strategy, scaled) == pytest.approx(after(4, strategy), abs=2e-6)


@pytest.mark.parametrize("strategy", [FedAvg(), FedAvgM(), FedAdam(), FedNova()], ids=lambda s: type(s).__name__)
def test_a_client_twice_is_a_client_with_twice_the_examples(strategy: Strategy) -> None:
    twice = [*sites(), replace(sites()[2], name="site-02-again")]
    double = [replace(c, weight=c.weight * 2) if c.name == "site-02" else c for c in sites()]
    assert after(4, strategy, twice) == pytest.approx(after(4, strategy, double), abs=5e-6)
