import math
from typing import Any

import numpy as np
import pytest

from polypfed import Federation, NumpyClient, strategies
from polypfed.backends import Local
from polypfed.core.errors import ConfigError
from polypfed.core.reduce import Mean
from polypfed.strategies import Cohort, FedAvg, Strategy
from tests.problems import Quadratic, bits, run

PLAIN = FedAvg()
A, B, LR, STEPS = (1.0, 4.0), (0.0, 1.0), 0.1, 5
"""Two sites with loss a/2 (x - b)^2; the optimum is sum(a b) / sum(a) = 0.8."""


def pair(steps: tuple[int, int] = (STEPS, STEPS), weights: tuple[int, int] = (1, 1)) -> list[NumpyClient]:
    return [
        NumpyClient(f"site-{i}", Quadratic(A[i], B[i]), [0.0], lr=LR, steps=steps[i], weight=weights[i]) for i in (0, 1)
    ]


def after(rounds: int, clients: list[NumpyClient], strategy: Strategy = PLAIN) -> float:
    history = Federation(clients=clients, strategy=strategy, evaluate="off").run(rounds, Local())
    assert history.model is not None
    return float(history.model[0])


def limit(steps: tuple[int, int] = (STEPS, STEPS), weights: tuple[int, int] = (1, 1)) -> float:
    """A local run is y = q x + (1 - q) b with q = (1 - lr a)^K: the fixed point is sum p (1 - q) b / sum p (1 - q)."""
    shares = [w * (1 - (1 - LR * a) ** k) for w, a, k in zip(weights, A, steps, strict=True)]
    return sum(s * b for s, b in zip(shares, B, strict=True)) / sum(shares)


def test_the_first_round_by_hand() -> None:
    """y1 stays at 0; y2 = 1 - 0.6^5 = 0.92224; the mean is 0.46112."""
    assert after(1, pair()) == pytest.approx(0.46112, abs=1e-6)
    assert after(1, pair(weights=(1, 3))) == pytest.approx(0.92224 * 3 / 4, abs=1e-6)
    assert after(1, pair(weights=(1, 3)), FedAvg(reducer=Mean("uniform"))) == pytest.approx(0.46112, abs=1e-6)
    assert after(1, pair(), FedAvg(eta=0.5)) == pytest.approx(0.23056, abs=1e-6)


def test_the_fixed_point_is_the_known_one_and_not_the_optimum() -> None:
    assert limit() == pytest.approx(0.6925023465, abs=1e-10)
    assert after(60, pair()) == pytest.approx(0.6925023465, abs=1e-6)


@pytest.mark.parametrize(("steps", "weights"), [((1, 9), (1, 1)), ((7, 2), (5, 1)), ((3, 3), (1, 10))])
def test_the_fixed_point_for_other_steps_and_weights(steps: tuple[int, int], weights: tuple[int, int]) -> None:
    assert after(80, pair(steps, weights)) == pytest.approx(limit(steps, weights), abs=2e-6)


def test_one_step_is_gradient_descent_on_the_weighted_sum() -> None:
    x, weights = 0.0, (1, 3)
    for _ in range(10):
        x -= LR * sum(w / 4 * a * (x - b) for w, a, b in zip(weights, A, B, strict=True))
    assert after(10, pair((1, 1), weights)) == pytest.approx(x, abs=1e-6)


def test_one_client_is_local_descent() -> None:
    alone = NumpyClient("a", Quadratic(0.37, 1.7), [0.1, -2.0], lr=0.05, steps=7, weight=9)
    found = Federation(clients=[alone]).run(3, Local()).model
    x = np.array([0.1, -2.0], np.float32)
    for _ in range(3):
        y = x
        for _ in range(7):
            y = y - np.float32(0.05) * (np.float32(0.37) * (y - np.float32(1.7)))
        x = x + (y - x)
    assert found is not None
    assert found.tobytes() == x.tobytes()


def test_duplicating_a_client_is_doubling_its_weight() -> None:
    a, b = pair(weights=(2, 3))
    twice = NumpyClient("site-2", b.gradient, [0.0], lr=LR, steps=STEPS, weight=3)
    assert after(4, [a, b, twice]) == pytest.approx(after(4, pair(weights=(2, 6))), abs=1e-6)


def test_scaling_all_weights_changes_no_more_than_rounding() -> None:
    assert after(4, pair(weights=(200, 300))) == pytest.approx(after(4, pair(weights=(2, 3))), abs=1e-6)


def test_the_float32_accumulator_is_close_and_not_the_default() -> None:
    wide, narrow = run(), run(strategy=FedAvg(reducer=Mean(dtype="float32")))
    assert bits(run(strategy=FedAvg(reducer=Mean(dtype="float64")))) == bits(wide)
    assert wide.model is not None
    np.testing.assert_allclose(narrow.model, wide.model, rtol=1e-5)  # type: ignore[arg-type]


def test_step_is_pure_and_moves_uphill_with_a_positive_mean() -> None:
    x, mean = np.zeros(2, np.float32), {"delta": np.array([1, -1], np.float32)}
    x.setflags(write=False)
    mean["delta"].setflags(write=False)
    moved, state = FedAvg(eta=0.5).step(x, {}, mean, Cohort(1, ("a",), (1,), 1))
    assert (moved.dtype, moved.tolist(), state) == (np.float32, [0.5, -0.5], {})


@pytest.mark.parametrize("eta", [0, -1.0, math.nan, math.inf, True, "1"])
def test_eta_is_above_zero(eta: Any) -> None:
    with pytest.raises(ConfigError, match=r"^eta: "):
        FedAvg(eta=eta)


def test_other_words_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^weights: "):
        FedAvg(reducer=Mean("sizes"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^dtype: "):
        FedAvg(reducer=Mean(dtype="float16"))  # type: ignore[arg-type]
    assert FedAvg(reducer=Mean("uniform", "float32")).reducer == Mean("uniform", "float32")


def test_the_docstring_cites_the_paper() -> None:
    assert "McMahan et al." in (strategies.fedavg.__doc__ or "")
