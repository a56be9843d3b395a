import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypfed.data.assign import allot, by_dirichlet, by_quantity, equal, generator, split_val


def one_bucket(sizes):
    return np.array(sizes, np.int64)[:, None]


def totals(parts, sizes, count):
    return np.bincount(parts, weights=sizes, minlength=count)


def test_generators_differ_by_label_and_seed_and_never_change():
    draws = {(s, label): generator(s, label).integers(0, 2**32) for s in (0, 1) for label in ("sites", "val/a")}
    assert len(set(draws.values())) == 4
    assert draws[0, "sites"] == 4136947207  # a changed value would change every partition ever made


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 6), st.integers(0, 5))
def test_equal_sites_differ_by_the_largest_group_at_most(sizes, count, seed):
    parts = equal(one_bucket(sizes), count, generator(seed, "t"))
    found = totals(parts, sizes, count)
    assert found.max() - found.min() <= max(sizes)


def test_given_shares():
    sizes = [1] * 100
    found = totals(by_quantity(one_bucket(sizes), [1, 3, 6], generator(0, "t")), sizes, 3)
    assert found.tolist() == [10, 30, 60]


def test_a_group_goes_where_its_content_lacks():
    groups = np.array([[4, 0], [0, 4], [1, 1]])
    targets = np.array([[5.0, 0.0], [0.0, 5.0]])
    assert allot(groups, targets, generator(0, "t"))[:2] == [0, 1]


def test_small_alpha_separates_and_large_alpha_mixes():
    groups = np.repeat(np.eye(4, dtype=np.int64), 50, axis=0)

    def spread(alpha):
        parts = np.array(by_dirichlet(groups, 4, alpha, generator(1, "t")))
        table = np.array([groups[parts == s].sum(axis=0) for s in range(4)])
        return np.abs(table / 50 - 0.25).mean()

    assert spread(0.05) > 0.25
    assert spread(1000) < 0.05


def test_validation_is_balanced_over_buckets():
    groups = np.repeat(np.eye(2, dtype=np.int64), [80, 20], axis=0)
    chosen = np.array(split_val(groups, 0.25, generator(0, "t")))
    assert groups[chosen].sum(axis=0).tolist() == [20, 5]


@pytest.mark.parametrize(("sizes", "val"), [([10, 10], 0.05), ([90, 10], 0.25), ([1, 1], 0.9), ([5, 5, 5], 0.01)])
def test_validation_is_neither_empty_nor_all(sizes, val):
    chosen = split_val(one_bucket(sizes), val, generator(0, "t"))
    assert any(chosen)
    assert not all(chosen)
