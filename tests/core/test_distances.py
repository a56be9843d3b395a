import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polypfed.core.distances import BLOCK, apart, combined, norm, pairwise

VALUES = st.floats(-(2.0**40), 2.0**40, width=32, allow_subnormal=False)


def exact(rows: np.ndarray) -> np.ndarray:
    """Squared distances in float64, of differences."""
    wide = rows.astype(np.float64)
    return np.array([[((a - b) ** 2).sum() for b in wide] for a in wide])


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 8).flatmap(lambda m: arrays(np.float32, (m, 6), elements=VALUES)))
def test_squared_distances_of_anything(values: np.ndarray) -> None:
    found = pairwise(list(values))
    assert found == pytest.approx(exact(values), rel=1e-5, abs=1e-300)
    assert (found >= 0).all()
    assert (found == found.T).all()


def test_t21_near_equal_updates_keep_their_distances() -> None:
    """float32 products of whole models gave -2.1 to 0.5 where 0.02 is right; so they do for these."""
    draw = np.random.default_rng(0)
    common = draw.standard_normal(1_000_000).astype(np.float32)
    rows = [common + (1e-4 * draw.standard_normal(common.size)).astype(np.float32) for _ in range(6)]
    matrix = np.stack(rows)
    squares = np.square(matrix).sum(axis=1)
    naive = squares[:, None] + squares - 2 * matrix @ matrix.T
    wanted = exact(matrix)
    others = ~np.eye(6, dtype=bool)
    assert abs(naive - wanted)[others].max() > wanted[others].max()  # the trap is one
    assert pairwise(rows)[others] == pytest.approx(wanted[others], rel=1e-5)


def test_one_far_row_does_not_blur_the_others() -> None:
    draw = np.random.default_rng(1)
    values = draw.standard_normal((5, 3 * BLOCK + 7)).astype(np.float32)
    values[0] *= 1e6
    assert pairwise(list(values)) == pytest.approx(exact(values), rel=1e-5)
    values[0] = 3e38  # its products overflow
    assert pairwise(list(values)) == pytest.approx(exact(values), rel=1e-5)


def test_equal_rows_are_equally_far_from_the_others_to_the_last_bit() -> None:
    values = np.random.default_rng(2).standard_normal((9, 1000)).astype(np.float32)
    values[7] = values[2]
    found = pairwise(list(values))
    assert found[2, 7] == 0
    assert found[2].tobytes() == found[7].tobytes()
    assert found[:, 2].tobytes() == found[:, 7].tobytes()


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, 9, elements=VALUES), arrays(np.float32, 9, elements=VALUES))
def test_norms_and_single_distances(a: np.ndarray, b: np.ndarray) -> None:
    square = sum((Fraction(x) - Fraction(y)) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True))
    assert apart(a, b) == pytest.approx(float(square), rel=1e-14)
    assert norm(a) == pytest.approx(math.hypot(*a.tolist()), rel=1e-14)


def test_norms_that_float32_cannot_square() -> None:
    assert norm(np.full(4, 1e30, np.float32)) == pytest.approx(2e30)
    assert norm(np.full(4, 1e-30, np.float32)) == pytest.approx(2e-30)
    assert norm(np.zeros(0, np.float32)) == 0.0


def test_a_combination_and_how_far_the_rows_are_from_it() -> None:
    values = np.random.default_rng(3).standard_normal((4, 2 * BLOCK + 5)).astype(np.float32)
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    centre, away = combined(list(values), shares)
    wanted = shares @ values.astype(np.float64)
    assert centre.dtype == np.float32
    assert centre == pytest.approx(wanted, rel=1e-6, abs=1e-7)
    assert away == pytest.approx(np.linalg.norm(values - wanted, axis=1), rel=1e-12)
