import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.core.errors import ConfigError, LayoutError
from polypfed.privacy import compress


@given(st.integers(1, 300), st.floats(0.01, 1.0), st.integers(0, 1000), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_all_sites_draw_the_same_ascending_indices(length, share, seed, round):
    one, two = (compress.random_k(length, share, seed, round) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert len(one) == max(1, int(np.ceil(share * length)))
    assert (np.diff(one) > 0).all()
    assert 0 <= one[0] <= one[-1] < length


def test_another_round_has_other_indices_and_all_get_their_turn():
    seen = np.zeros(100)
    for round in range(1, 200):
        seen[compress.random_k(100, 0.1, 0, round)] += 1
    assert seen.min() > 0
    assert seen.max() < 60


def test_top_k_keeps_the_largest_and_explores():
    reference = np.float32([0, 5, -6, 1, 0, 2, 0, 0])
    assert compress.top_k(reference, 0.5, 0, 1, explore=0.0).tolist() == [1, 2, 3, 5]
    with_others = [compress.top_k(reference, 0.5, 0, r, explore=0.5) for r in range(60)]
    assert all({1, 2} <= set(i.tolist()) and len(i) == 4 for i in with_others)
    assert set(np.concatenate(with_others).tolist()) == set(range(8))


def test_ties_go_to_the_lower_index_and_an_empty_reference_is_random():
    assert compress.top_k(np.ones(6, np.float32), 0.5, 0, 1, explore=0.0).tolist() == [0, 1, 2]
    assert len(compress.top_k(np.zeros(6, np.float32), 0.5, 0, 1, explore=0.0)) == 3


def test_what_is_not_sent_stays_and_comes_later():
    draw = np.random.default_rng(0)
    residual, sent, wanted = None, np.zeros(50), np.zeros(50)
    for round in range(1, 40):
        vector = draw.normal(size=50).astype(np.float32)
        indices = compress.random_k(50, 0.2, 3, round)
        out = compress.gather(vector, residual, indices)
        residual = out.residual
        sent += compress.scatter(out.values, indices, 50)
        wanted += vector
    np.testing.assert_allclose(sent + residual, wanted, atol=1e-4)


def test_sums_of_the_sent_values_are_the_sent_values_of_the_sum():
    draw = np.random.default_rng(0)
    vectors = draw.integers(-9, 9, (4, 30)).astype(np.float32)
    indices = compress.random_k(30, 0.3, 0, 1)
    sparse = sum(compress.gather(v, None, indices).values for v in vectors)
    np.testing.assert_array_equal(sparse, vectors.sum(axis=0)[indices])


def test_gather_does_not_change_its_input():
    vector = np.ones(4, np.float32)
    vector.setflags(write=False)
    assert compress.gather(vector, None, np.array([1, 2])).residual.tolist() == [1, 0, 0, 1]


def test_misuse_is_refused():
    for share in (0.0, 1.5, -1, float("nan")):
        with pytest.raises(ConfigError, match="share"):
            compress.kept(10, share)
    with pytest.raises(ConfigError, match="explore"):
        compress.top_k(np.ones(3, np.float32), 0.5, 0, 1, explore=2)
    with pytest.raises(LayoutError, match="residual"):
        compress.gather(np.ones(3, np.float32), np.ones(4, np.float32), np.array([0]))
    with pytest.raises(LayoutError, match="outside"):
        compress.gather(np.ones(3, np.float32), None, np.array([0, 3]))
    with pytest.raises(LayoutError, match="values for"):
        compress.scatter(np.ones(3, np.float32), np.array([0]), 5)
