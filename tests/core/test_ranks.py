"""The oracles are numpy's and scipy's own functions, and the 0-1 principle."""

import random
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import trim_mean

from polypfed.core import ranks
from polypfed.core.ranks import BLOCK, median, network, program, trimmed_mean

LARGEST = 2.0**100
VALUES = st.floats(-LARGEST, LARGEST, width=32, allow_subnormal=False)


def matrices(most: int = 12) -> st.SearchStrategy[np.ndarray]:
    """Rows of a few values, many of them equal."""
    some = st.one_of(VALUES, st.sampled_from([0.0, -0.0, 1.0, -1.0]))
    return st.integers(1, most).flatmap(lambda count: arrays(np.float32, (count, 5), elements=some))


@pytest.mark.parametrize("count", range(1, 14))
def test_the_network_sorts_every_list_of_zeros_and_ones(count: int) -> None:
    """And therefore every list (0-1 principle: Knuth, The Art of Computer Programming 3, section 5.3.4)."""
    values = np.array(list(product((0, 1), repeat=count)), np.int8)
    for a, b in network(count):
        assert a < b
        values[:, [a, b]] = np.sort(values[:, [a, b]], axis=1)
    assert (np.diff(values, axis=1) >= 0).all()


@pytest.mark.parametrize("count", [17, 20, 31, 40, 64, 100])
def test_larger_networks_sort_what_was_tried(count: int) -> None:
    draw = np.random.default_rng(count)
    values = (draw.random((2000, count)) < draw.random((2000, 1))).astype(np.int8)
    for a, b in network(count):
        values[:, [a, b]] = np.sort(values[:, [a, b]], axis=1)
    assert (np.diff(values, axis=1) >= 0).all()


@settings(max_examples=80, deadline=None)
@given(matrices())
def test_the_median_is_numpys(values: np.ndarray) -> None:
    assert (median(list(values)) == np.median(values, axis=0)).all()


@settings(max_examples=80, deadline=None)
@given(matrices(), st.floats(0, 0.499))
def test_the_trimmed_mean_is_scipys(values: np.ndarray, share: float) -> None:
    wanted = trim_mean(values.astype(np.float64), share, axis=0)
    largest = np.abs(values).max(initial=0.0)
    found = trimmed_mean(list(values), int(share * len(values)))
    assert np.abs(found.astype(np.float64) - wanted).max() <= 1e-7 * largest


@pytest.mark.parametrize("count", [1, 2, 5, 10, 16, 20, 33, 70])
def test_every_number_of_rows_and_every_cut(count: int) -> None:
    values = np.random.default_rng(count).standard_normal((count, 50)).astype(np.float32)
    ordered = np.sort(values.astype(np.float64), axis=0)
    assert (median(list(values)) == np.median(values, axis=0)).all()
    for cut in range((count + 1) // 2):
        wanted = ordered[cut : count - cut].mean(axis=0)
        assert trimmed_mean(list(values), cut) == pytest.approx(wanted, rel=1e-6, abs=1e-7)


def test_blocks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal((5, 2 * BLOCK + 3)).astype(np.float32)
    whole = median(list(values)), trimmed_mean(list(values), 1)
    assert (whole[0] == np.median(values, axis=0)).all()
    monkeypatch.setattr(ranks, "SCRATCH", 35)  # seven values a block
    short = values[:, :100].copy()
    assert (median(list(short)) == whole[0][:100]).all()
    assert (trimmed_mean(list(short), 1) == whole[1][:100]).all()


@settings(max_examples=50, deadline=None)
@given(matrices(), st.randoms(use_true_random=False))
def test_a_median_has_the_same_bits_whoever_is_who(values: np.ndarray, luck: random.Random) -> None:
    rows = list(values)
    straight = median(rows).tobytes()
    luck.shuffle(rows)
    assert median(rows).tobytes() == straight


def test_zero_has_no_sign() -> None:
    rows = [np.array([z], np.float32) for z in (-0.0, 0.0, -0.0)]
    for found in (median(rows), median(rows[:2]), median(rows[:1]), trimmed_mean(rows, 1), trimmed_mean(rows, 0)):
        assert not np.signbit(found).any()


def test_rows_are_only_read() -> None:
    values = np.random.default_rng(0).standard_normal((9, 40)).astype(np.float32)
    before = values.copy()
    values.setflags(write=False)
    median(list(values))
    trimmed_mean(list(values), 2)
    assert (values == before).all()


def test_nothing_to_reduce_is_nothing() -> None:
    empty = [np.zeros(0, np.float32)] * 4
    assert median(empty).size == trimmed_mean(empty, 1).size == 0


@pytest.mark.parametrize(("count", "most"), [(10, 48), (20, 128)])
def test_cutting_down_pays(count: int, most: int) -> None:
    """Every comparison is a pass over all values; Batcher's network cut down alike takes 50 and 150."""
    assert len(program(count, (count - 1) // 2, count // 2 + 1).compare) <= most
    assert program(count, 0, count).compare == ()  # all of them, in any order
