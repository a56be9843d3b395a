import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.core.errors import ConfigError, DataError, LayoutError
from polypfed.core.model import ModelSpec
from polypfed.privacy.errors import FrameRefused
from polypfed.privacy.quantise import Codec, Grid
from polypfed.privacy.slots import Slots

BYTE = Slots(modulus=(300 * 8 + 1) ** 4, base=300 * 8 + 1, lanes=4, sites=8)


def encoded(codec: Codec, vectors: list[np.ndarray], weights: list[int]) -> list[np.ndarray]:
    return [
        codec.encode(v, w, np.random.default_rng(i)).slots
        for i, (v, w) in enumerate(zip(vectors, weights, strict=True))
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 50), st.integers(0, 2**32), st.booleans())
def test_the_mean_is_within_a_step_of_the_exact_one(sites, length, seed, weighted):
    draw = np.random.default_rng(seed)
    vectors = [draw.uniform(-2, 2, length).astype(np.float32) for _ in range(sites)]
    weights = draw.integers(1, 5000, sites).tolist()
    codec = Codec(BYTE, Grid.flat(2.0, length), cap=5000 if weighted else None)
    result = codec.decode(sum(encoded(codec, vectors, weights)), expect=sites)
    assert result.count == sites
    assert result.weight == (sum(weights) if weighted else sites)
    exact = np.average(vectors, axis=0, weights=weights if weighted else None)
    scale = 5000 * sites / sum(weights) if weighted else 1
    assert np.abs(result.mean - exact).max() <= 2 * 2.0 / BYTE.levels * scale + 1e-6


def test_rounding_is_unbiased():
    codec = Codec(Slots(1 << 16, 1 << 16, 1, 4096), Grid.flat(1.0, 4000))
    assert codec.slots.levels == 14
    draw = np.random.default_rng(0)
    for value in (-0.97, -0.31, 0.05, 0.6):
        found = codec.decode(codec.encode(np.full(4000, value, np.float32), 0, draw).slots).mean
        assert set(np.round((found + 1) * 7, 3)) <= set(range(15)), "one lane each, so few levels"
        assert np.mean(found) == pytest.approx(value, abs=4 * (2 / 14) / 2 / np.sqrt(4000))


FEW = Slots(modulus=33**9, base=33, lanes=9, sites=4)  # 9 levels: what HEParams gives four sites at 3 bits


def test_few_levels_are_spent_on_the_many_small_values():
    """A grid that follows the largest value of 20,000 loses most of a Laplace vector at 9 levels; the span does not."""
    draw, codec = np.random.default_rng(0), Codec(FEW, Grid.flat(1.0, 20_000))
    vectors = [draw.laplace(0, 0.01, 20_000).astype(np.float32) for _ in range(4)]
    for _ in range(2):
        result = codec.decode(sum(encoded(codec, vectors, [1] * 4)), expect=4)
        codec = Codec(FEW, codec.grid.following(result.spans))
    assert codec.grid.bounds[0] == pytest.approx(3 * 0.01 * np.sqrt(2), rel=0.02), "three times the root mean square"
    exact = np.mean(vectors, axis=0)

    def lost(bound: float) -> float:
        found = Codec(FEW, Grid.flat(bound, 20_000))
        error = found.decode(sum(encoded(found, vectors, [1] * 4)), expect=4).mean - exact
        return float(np.square(error).sum() / np.square(exact).sum())

    assert lost(codec.grid.bounds[0]) < 0.12
    assert lost(2 * max(np.abs(v).max() for v in vectors)) > 1.0


def test_many_levels_leave_room_for_the_largest_value():
    draw, codec = np.random.default_rng(0), Codec(BYTE, Grid.flat(1.0, 20_000))
    vector = draw.laplace(0, 0.01, 20_000).astype(np.float32)
    bound = codec.grid.following(codec.decode(sum(encoded(codec, [vector], [1]))).spans).bounds[0]
    assert bound == pytest.approx(2 * np.abs(vector).max(), rel=0.03)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([2, 4, 8, 12]), st.integers(1, 4), st.integers(0, 2**32))
def test_small_tensors_have_levels_enough_whatever_a_lane_holds(levels, sites, seed):
    """Beside a large section of few levels, values of a small one come back to a part in 4096, and residuals fit."""
    slots = Slots(modulus=(4 * levels + 1) ** 5, base=4 * levels + 1, lanes=5, sites=4)
    assert slots.levels == levels
    draw, codec = np.random.default_rng(seed), Codec(slots, Grid((1.0, 2.0, 0.5), (5000, 30, 1)))
    vectors = [draw.uniform(-0.5, 0.5, 5031).astype(np.float32) for _ in range(sites)]
    zero = np.zeros(5031, np.float32)
    out = [codec.encode(v, 1, np.random.default_rng(i), zero) for i, v in enumerate(vectors)]
    result = codec.decode(sum(o.slots for o in out), expect=sites)
    exact = np.mean(vectors, axis=0)
    assert np.abs(result.mean - exact)[5000:].max() <= 2 * 2.0 / 4096
    assert result.mean == pytest.approx(exact - np.mean([o.residual for o in out], axis=0), abs=1e-6)
    assert not codec.decode(codec.encode(zero, 1, draw).slots).mean.any()


def test_zero_stays_exactly_zero():
    codec = Codec(BYTE, Grid.flat(0.3, 1000), cap=77)
    total = sum(encoded(codec, [np.zeros(1000, np.float32)] * 5, [3, 77, 1, 0, 9]))
    result = codec.decode(total)
    assert not result.mean.any()
    assert result.weight == 90


def test_nothing_but_zero_weights_is_no_division_by_zero():
    codec = Codec(BYTE, Grid.flat(1.0, 3), cap=10)
    result = codec.decode(codec.encode(np.ones(3, np.float32), 0, np.random.default_rng(0)).slots)
    assert result.weight == 0
    assert not result.mean.any()


@given(st.integers(2, 40), st.integers(0, (1 << 40) - 1))
@settings(max_examples=60, deadline=None)
def test_the_total_weight_is_exact_however_coarse_the_levels(levels, cap):
    cap = max(cap, 1)
    slots = Slots((levels * 3 + 1) ** 2, levels * 3 + 1, 2, 3)
    codec = Codec(slots, Grid.flat(1.0, 2), cap)
    total = sum(encoded(codec, [np.zeros(2, np.float32)] * 3, [cap, cap // 2, 1]))
    assert codec.decode(total, expect=3).weight == cap + cap // 2 + 1


def test_values_outside_are_clipped_counted_and_kept_for_later():
    codec = Codec(BYTE, Grid.flat(1.0, 4))
    vector = np.float32([3.0, -1.5, 0.0, 1.0])
    first = codec.encode(vector, 1, np.random.default_rng(0), residual=np.zeros(4, np.float32))
    assert first.saturated == 2
    sent = codec.decode(first.slots).mean
    np.testing.assert_allclose(sent, [1, -1, 0, 1])
    np.testing.assert_allclose(first.residual, [2, -0.5, 0, 0])
    second = codec.encode(np.zeros(4, np.float32), 1, np.random.default_rng(0), residual=first.residual)
    np.testing.assert_allclose(codec.decode(second.slots).mean[0], 1.0)
    np.testing.assert_allclose(second.residual[0], 1.0)


def test_error_feedback_makes_the_sum_over_rounds_exact():
    """What was sent in all rounds and what is still kept add up to what was to be sent."""
    codec = Codec(Slots(1 << 16, 1 << 16, 1, 8191), Grid.flat(1.0, 64))  # 6 levels
    draw = np.random.default_rng(1)
    residual, sent, wanted = np.zeros(64, np.float32), np.zeros(64), np.zeros(64)
    for _ in range(50):
        vector = draw.normal(0, 0.2, 64).astype(np.float32)
        out = codec.encode(vector, 1, draw, residual)
        residual = out.residual
        sent += codec.decode(out.slots).mean
        wanted += vector
    np.testing.assert_allclose(sent + residual, wanted, atol=1e-4)
    assert np.abs(residual).max() < 2


def test_each_section_has_its_own_bound():
    grid = Grid((0.001, 100.0), (3, 2))
    codec = Codec(BYTE, grid)
    vector = np.float32([0.001, -0.0005, 0.0002, 100, -37])
    mean = codec.decode(codec.encode(vector, 1, np.random.default_rng(0)).slots).mean
    assert np.abs(mean[:3] - vector[:3]).max() <= 2 * 0.001 / BYTE.levels
    assert np.abs(mean[3:] - vector[3:]).max() <= 2 * 100 / BYTE.levels


def test_the_same_generator_gives_the_same_slots():
    codec = Codec(BYTE, Grid.flat(1.0, 200_000))
    vector = np.random.default_rng(0).normal(0, 0.1, 200_000).astype(np.float32)
    one, two = (codec.encode(vector, 1, np.random.default_rng(7)).slots for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_a_sum_of_another_number_of_sites_is_refused():
    codec = Codec(BYTE, Grid.flat(1.0, 10))
    one, two = encoded(codec, [np.zeros(10, np.float32)] * 2, [1, 1])
    with pytest.raises(FrameRefused, match="holds 2 sites, not 3") as caught:
        codec.decode(one + two, expect=3)
    assert caught.value.reason == "count"
    with pytest.raises(FrameRefused, match="holds 0 sites"):
        codec.decode(np.zeros_like(one))
    with pytest.raises(FrameRefused, match="holds 9 sites"):
        codec.decode(one * np.uint64(9))


def test_what_cannot_be_encoded_is_refused():
    codec = Codec(BYTE, Grid.flat(1.0, 2), cap=10)
    draw = np.random.default_rng(0)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(DataError, match="not finite"):
            codec.encode(np.float32([0, bad]), 1, draw)
    with pytest.raises(DataError, match="cap is 10"):
        codec.encode(np.zeros(2, np.float32), 11, draw)
    with pytest.raises(LayoutError, match="shape"):
        codec.encode(np.zeros(3, np.float32), 1, draw)
    for bound in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="bound"):
            Grid.flat(bound, 2)
    with pytest.raises(ConfigError, match="2 bounds for 1"):
        Grid((1.0, 2.0), (3,))


def test_sites_with_different_grids_are_found_out():
    mine, other = (Codec(BYTE, Grid.flat(bound, 10)) for bound in (1.0, 1.0001))
    zero = np.zeros(10, np.float32)
    total = mine.encode(zero, 1, np.random.default_rng(0)).slots + other.encode(zero, 1, np.random.default_rng(0)).slots
    with pytest.raises(FrameRefused, match="one and the same grid") as caught:
        mine.decode(total, expect=2)
    assert caught.value.reason == "wrong-parameters"


def test_the_next_grid_suits_what_sites_send_though_their_mean_is_zero():
    """Two sites pull in opposite directions: the mean vanishes, the grid must not."""
    codec = Codec(BYTE, Grid((1.0, 1.0, 1.0), (4, 2, 1)))
    vector = np.float32([0.1, -0.5, 0, 0.2, 7.0, -0.01, 0])
    result = codec.decode(sum(encoded(codec, [vector, -vector], [1, 1])), expect=2)
    assert result.spans == pytest.approx((0.5, 7.0, 0.0), rel=0.02)
    following = codec.grid.following(result.spans)
    assert following.bounds == pytest.approx((1.0, 14.0, 1.0), rel=0.02)
    again = Codec(BYTE, following).encode(vector, 1, np.random.default_rng(0))
    assert again.saturated == 0


def test_a_site_much_larger_than_the_others_still_moves_the_grid():
    codec = Codec(BYTE, Grid.flat(0.01, 10))
    vectors = [np.full(10, 1e-4, np.float32)] * 3 + [np.full(10, 3.0, np.float32)]
    grid = codec.grid
    for _ in range(3):
        codec = Codec(BYTE, grid)
        out = [codec.encode(v, 1, np.random.default_rng(0)) for v in vectors]
        grid = grid.following(codec.decode(sum(o.slots for o in out), expect=4).spans)
    assert sum(o.saturated for o in out) == 0
    assert 2.5 < grid.bounds[0] < 3.5


def test_a_first_grid_has_a_section_per_tensor():
    arrays = {"w": np.full((2, 3), -4.0), "b": np.zeros(2), "var": np.ones(2), "none": np.zeros((0, 3))}
    spec = ModelSpec.of(arrays, buffers=["var"])
    grid = Grid.of_model(spec, spec.pack(arrays))
    assert grid.sizes == (6, 2, 2)
    assert grid.bounds == pytest.approx((0.2, 0.001, 0.05))
    assert grid.length == spec.size
