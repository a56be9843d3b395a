"""Every published check value, and the closed forms behind them, through whole federations."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed import NumpyClient
from polypfed.core.reduce import Mean
from polypfed.strategies import FedAvg, FedDyn, FedNova, FedProx, Scaffold
from tests.problems import Quadratic
from tests.strategies.oracles import TWO, Problem, line, random_problem, train

few = settings(max_examples=25, deadline=None)


@st.composite
def problems(draw: Any, least: int = 2) -> Problem:
    """Up to four sites with different curvatures, optima, steps and examples."""
    n = draw(st.integers(least, 4))

    def several(of: Any) -> Any:
        return draw(st.lists(of, min_size=n, max_size=n))

    a = several(st.floats(0.5, 4).map(lambda v: round(v, 3)))
    b = several(st.floats(-2, 2).map(lambda v: round(v, 3)))
    lr = draw(st.sampled_from([0.03, 0.1, 0.2]))
    return line(a, b, several(st.integers(1, 8)), several(st.integers(1, 50)), lr)


def test_the_published_values() -> None:
    two = TWO.clients()
    assert TWO.optimum()[0] == pytest.approx(0.8, abs=1e-10)
    assert TWO.fixed_point()[0] == pytest.approx(0.6925023465, abs=1e-10)
    assert TWO.fixed_point(mu=1)[0] == pytest.approx(0.6974693114, abs=1e-10)
    assert train(80, two, FedAvg())[0] == pytest.approx(0.6925023465, abs=1e-6)
    assert train(80, two, FedProx(mu=1))[0] == pytest.approx(0.6974693114, abs=1e-6)
    for rounds, value in ((1, 0.46112), (2, 0.697709144), (3, 0.7853054088)):
        assert train(rounds, two, Scaffold())[0] == pytest.approx(value, abs=1e-6)
    for strategy in (Scaffold(), Scaffold(option="I"), FedDyn(alpha=1.0)):
        assert train(80, two, strategy)[0] == pytest.approx(0.8, abs=1e-6)


@few
@given(problems(), st.integers(1, 4))
def test_fedavg_goes_where_theory_says(problem: Problem, rounds: int) -> None:
    assert train(rounds, problem.clients(), FedAvg()) == pytest.approx(problem.averaged(rounds), abs=2e-6)


@few
@given(problems(), st.integers(1, 4), st.sampled_from([0.1, 1.0, 3.0]))
def test_fedprox_goes_where_theory_says(problem: Problem, rounds: int, mu: float) -> None:
    found = train(rounds, problem.clients(), FedProx(mu=mu, reducer=Mean("uniform")))
    even = [1] * len(problem.bowls)
    assert found == pytest.approx(problem.averaged(rounds, even, mu), abs=2e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mu", [0.0, 2.0])
def test_both_settle_where_theory_says_which_is_not_the_optimum(seed: int, mu: float) -> None:
    problem = random_problem(seed, 7)
    found = train(120, problem.clients(), FedProx(mu=mu) if mu else FedAvg())
    assert found == pytest.approx(problem.fixed_point(mu=mu), abs=2e-6)
    assert np.linalg.norm(found - problem.optimum(problem.weights)) > 0.03


def exact(problem: Problem, pull: float) -> list[NumpyClient]:
    """Sites that solve min f_i(y) + pull/2 (y - x)^2 exactly: one Newton step of a quadratic."""
    rows = zip(problem.names, problem.bowls, problem.weights, strict=True)
    return [NumpyClient(n, b, [0.0], lr=1 / (b.A[0, 0] + pull), steps=1, weight=w) for n, b, w in rows]


def curves(problem: Problem) -> tuple[Any, Any, Any]:
    a = np.array([bowl.A[0, 0] for bowl in problem.bowls])
    b = np.array([bowl.b[0] for bowl in problem.bowls])
    return a, b, np.array(problem.weights) / sum(problem.weights)


@few
@given(problems(), st.sampled_from([0.5, 2.0]))
def test_fedprox_with_exact_local_solutions(problem: Problem, mu: float) -> None:
    a, b, p = curves(problem)
    s = p * a / (a + mu)
    found = train(60, exact(problem, mu), FedProx(mu=mu))
    assert found[0] == pytest.approx((s * b).sum() / s.sum(), abs=5e-6)


@few
@given(problems(), st.sampled_from([0.5, 2.0]), st.booleans())
def test_feddyn_with_exact_local_solutions(problem: Problem, alpha: float, weighted: bool) -> None:
    """y_i = (a b + g + alpha x)/(a + alpha): the iterates by hand, with weights fixed for the run or without."""
    a, b, p = curves(problem)
    weights = dict(zip(problem.names, map(float, problem.weights), strict=True)) if weighted else None
    p = p if weighted else np.full(len(a), 1 / len(a))
    x, h, g = 0.0, 0.0, np.zeros(len(a))
    for rounds in (1, 2, 3):
        y = (a * b + g + alpha * x) / (a + alpha)
        g = g - alpha * (y - x)
        h = h - alpha * (p * (y - x)).sum()
        x = (p * y).sum() - h / alpha
        assert h == pytest.approx((p * g).sum())
        found = train(rounds, exact(problem, alpha), FedDyn(alpha=alpha, weights=weights))
        assert found[0] == pytest.approx(x, abs=2e-5)


@few
@given(problems())
def test_fednova_by_hand(problem: Problem) -> None:
    """d_i = -D_i/K_i, tau = sum p K: the round by the paper's own symbols, where lr cancels."""
    a, b, p = curves(problem)
    steps, x = np.array(problem.steps), 0.0
    for _ in range(3):
        moved = (1 - (1 - problem.lr * a) ** steps) * (b - x)
        x = x + (p * steps).sum() * (p * moved / steps).sum()
    assert train(3, problem.clients(), FedNova())[0] == pytest.approx(x, abs=1e-5)


@pytest.mark.parametrize("a_ratio", [1.0, 3.0])
def test_fednova_tends_to_the_optimum_as_the_rate_falls_and_fedavg_does_not(a_ratio: float) -> None:
    """9 steps against 1: FedAvg weighs the busy site nine times, FedNova's bias is of the order of lr."""
    errors: dict[str, list[float]] = {"FedAvg": [], "FedNova": []}
    for lr in (0.04, 0.01):
        problem = line((1, a_ratio), (0, 1), (9, 1), (1, 1), lr)
        for strategy in (FedAvg(), FedNova()):
            found = train(int(8 / lr / 5), problem.clients(), strategy)[0]
            errors[type(strategy).__name__].append(abs(found - problem.optimum()[0]))
    assert errors["FedNova"][1] < 0.4 * errors["FedNova"][0] < 0.1
    assert min(errors["FedAvg"]) > 0.2


def test_a_bias_towards_busy_sites_is_fedprox_s_too() -> None:
    """A proximal term does not remove what unequal numbers of steps do."""
    problem = line((1, 1), (0, 1), (9, 1), (1, 1), 0.01)
    assert train(150, problem.clients(), FedProx(mu=0.1))[0] < 0.2


@few
@given(problems(least=1), st.integers(1, 4))
def test_one_client_is_local_descent(problem: Problem, rounds: int) -> None:
    """Under every strategy whose server adds nothing to the one delta."""
    alone = Problem(problem.bowls[:1], problem.steps[:1], problem.weights[:1], problem.lr)
    a, b, _ = curves(alone)
    wanted = b[0] * (1 - (1 - alone.lr * a[0]) ** (alone.steps[0] * rounds))
    for strategy in (FedAvg(), FedProx(mu=0), Scaffold(), Scaffold(option="I"), FedNova()):
        assert train(rounds, alone.clients(), strategy)[0] == pytest.approx(wanted, abs=5e-6), strategy


def test_the_gradient_of_the_proximal_term() -> None:
    """T14: mu (y - x), so 0 in the first step, and twice as much twice as far."""
    flat = [NumpyClient("a", Quadratic(0, 0), [1.0], lr=1.0, steps=1)]
    assert train(1, flat, FedProx(mu=0.5))[0] == 1.0
    rule = FedProx(mu=0.5).local_rule()
    x = np.array([1, 1], np.float32)
    rule.begin(x, {}, {})
    assert rule.direction(np.zeros(2, np.float32), x + np.float32(0)).tolist() == [0, 0]
    assert rule.direction(np.zeros(2, np.float32), np.array([3, 5], np.float32)).tolist() == [1, 2]
