"""Who points against all others, by hand and by brute force."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.core import distances
from polypfed.core.camps import opposed
from polypfed.core.model import Vector


def rows(values: object) -> list[Vector]:
    return [np.ascontiguousarray(row, np.float32) for row in np.asarray(values, np.float64)]


AGREE = [[1, 0.5], [1, -0.5], [1, 0.2], [1, -0.2]]


def test_one_against_four_that_agree() -> None:
    assert opposed(rows([*AGREE, [-1, 0]])) == [4]
    assert opposed(rows([[-1, 0], *AGREE])) == [0]
    assert opposed(rows([*AGREE, [1, 0]])) == []


@pytest.mark.parametrize("length", [1e-30, 1e-6, 1e6, 1e30])
def test_length_does_not_matter(length: float) -> None:
    assert opposed(rows([*AGREE, [-length, 0]])) == [4]
    assert opposed(rows([*AGREE, [length, 0]])) == []
    assert opposed(rows([[length * x for x in row] for row in AGREE] + [[-1, 0]])) == [4]


def test_across_is_not_against() -> None:
    """At a right angle to one of them, or within 90 degrees of it."""
    assert opposed(rows([*AGREE, [-0.5, 1]])) == []  # <(1, 0.5), (-0.5, 1)> = 0
    assert opposed(rows([*AGREE, [-0.4, 1]])) == []
    assert opposed(rows([*AGREE, [-0.6, 1]])) == [4]


def test_sites_that_are_all_unlike_are_left_alone() -> None:
    """Each of five classes' updates points against all others: at the optimum they add up to nothing."""
    corners = np.eye(5) - 1 / 5
    assert np.allclose(corners.sum(0), 0)
    assert opposed(rows(corners)) == []


def test_who_is_opposed_by_two_that_disagree_is_not_judged() -> None:
    assert opposed(rows([[1, 0, 0], [1, 0.3, 0], [1, 0, 0.1], [0.1, -1, 0], [-1, 0.01, 0]])) == []


def test_a_majority_is_no_majority_below_five() -> None:
    assert opposed(rows([*AGREE[:3], [-1, 0]])) == []
    assert opposed(rows([AGREE[0], AGREE[1], [-1, 0]])) == []
    assert opposed(rows([AGREE[0]])) == []


@pytest.mark.parametrize(("sites", "most"), [(5, 1), (6, 1), (7, 2), (8, 2), (9, 3), (21, 9)])
def test_as_many_as_krum_bears(sites: int, most: int) -> None:
    draw = np.random.default_rng(sites)
    for bad in range(most + 2):
        values = np.hstack([np.ones((sites, 1)), draw.normal(0, 0.05, (sites, 3))])
        places = sorted(draw.permutation(sites)[:bad].tolist())
        values[places, 0] *= -1
        assert opposed(rows(values)) == (places if bad <= most else [])


def test_zeros_say_nothing() -> None:
    """A site that has passed no image on has no direction, and takes none of five away."""
    assert opposed(rows([*AGREE, [0, 0], [-1, 0]])) == [5]
    assert opposed(rows([*AGREE[:3], [0, 0], [-1, 0]])) == []
    assert opposed(rows(np.zeros((5, 2)))) == []


def brute(values: list[Vector]) -> list[int]:
    """Every way to make two camps."""
    count, found = len(values), []
    dots = np.array([[float(np.dot(a.astype(np.float64), b)) for b in values] for a in values])
    for bad in range(1, (count - 3) // 2 + 1):
        for outside in combinations(range(count), bad):
            camp = [i for i in range(count) if i not in outside]
            agree = all(dots[i, j] > 0 for i in camp for j in camp)
            if agree and all(dots[i, k] < 0 for i in camp for k in outside):
                found.append(list(outside))
    assert len(found) <= 1, "there is one at most"
    return found[0] if found else []


@given(st.integers(0, 2**32), st.integers(5, 8), st.floats(0, 2))
@settings(max_examples=100, deadline=None)
def test_as_by_trying_every_two_camps(seed: int, count: int, pull: float) -> None:
    draw = np.random.default_rng(seed)
    sides = np.where(draw.random(count) < 0.2, -1.0, 1.0)
    values = rows(sides[:, None] * pull * np.array([1, 1, 0]) + draw.normal(0, 1, (count, 3)))
    assert opposed(values) == brute(values)


def test_order_moves_the_indices_and_nothing_else() -> None:
    values = rows([*AGREE, [1, 0.1], [-1, 0.1], [-2, 0]])
    assert opposed(values) == [5, 6]
    order = [6, 0, 3, 5, 1, 4, 2]
    assert opposed([values[i] for i in order]) == [0, 3]


def test_cosines_of_long_rows() -> None:
    draw = np.random.default_rng(0)
    values = rows(draw.normal(0, 1, (4, 3 * distances.BLOCK + 7)) + np.array([[0.1], [0.2], [-0.1], [0]]))
    wide = np.stack(values).astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    assert distances.cosines(values) == pytest.approx(wide @ wide.T, abs=1e-6)
