import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from polypfed.core.errors import ConfigError, DataError
from polypfed.privacy.dp import AdaptiveNorm, clip, noised, noised_mean, standard_normal
from polypfed.privacy.errors import IncompatiblePrivacy

pytest.importorskip("cryptography")


def norm(vectors) -> float:
    return math.sqrt(sum(float((v.astype(np.float64) ** 2).sum()) for v in vectors.values()))


@given(st.integers(0, 2**32), st.floats(1e-6, 1e6), st.floats(1e-3, 1e3))
@settings(max_examples=80, deadline=None)
def test_nothing_longer_than_the_bound_leaves_and_the_direction_stays(seed, scale, bound):
    draw = np.random.default_rng(seed)
    vectors = {
        "delta": (scale * draw.normal(size=50)).astype(np.float32),
        "control": (scale * draw.normal(size=7)).astype(np.float32),
        "scalar": np.array(scale * draw.normal(), np.float32),
        "empty": np.zeros(0, np.float32),
    }
    out = clip(vectors, bound)
    assert norm(out.vectors) <= bound
    assert out.unclipped == (norm(vectors) <= bound)
    assert out.norm == pytest.approx(norm(vectors))
    for name, v in vectors.items():
        assert (out.vectors[name].shape, out.vectors[name].dtype) == (v.shape, v.dtype)
        np.testing.assert_allclose(out.vectors[name], v * min(1, bound / norm(vectors)), rtol=1e-5)


def test_one_norm_over_everything_zeros_and_shapes_that_others_forget():
    out = clip({"a": np.float32([3]), "b": np.array(4, np.float32)}, 1.0)
    assert out.vectors["a"] == pytest.approx(0.6, rel=1e-5)
    assert out.vectors["b"] == pytest.approx(0.8, rel=1e-5)
    zero = clip({"a": np.zeros(3, np.float32), "b": np.array(0, np.float32)}, 1.0)
    assert zero.unclipped
    assert not zero.vectors["a"].any()
    assert clip({"a": np.float32([3e38, 3e38])}, 1.0).norm == pytest.approx(3e38 * 2**0.5)
    for bad in (np.nan, np.inf):
        with pytest.raises(DataError):
            clip({"a": np.float32([bad])}, 1.0)
    with pytest.raises(ConfigError):
        clip({"a": np.float32([1])}, 0.0)


@pytest.mark.parametrize("generator", [None, np.random.default_rng(0)], ids=["system", "seeded"])
def test_noise_is_standard_normal(generator):
    sample = standard_normal(200_001, generator)
    assert kstest(sample, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(sample[1:], sample[:-1])[0, 1]) < 0.01
    assert abs((sample**4).mean() - 3) < 0.1


def test_system_noise_is_never_the_same_twice():
    assert len({standard_normal(1)[0] for _ in range(50)}) == 50


@pytest.mark.parametrize(("sites", "planned"), [(8, 8), (5, 8), (2, 2)])
def test_the_noise_on_the_aggregate_has_the_promised_deviation(sites, planned):
    """Central: z C / m on the mean over the planned m, whoever came."""
    z, bound, size = 1.3, 0.7, 100_000
    mean = np.full(size, 0.25, np.float32)
    released = noised_mean(mean, sites, planned, z, bound)
    assert released.mean() == pytest.approx(0.25 * sites / planned, abs=5 * z * bound / planned / size**0.5)
    assert (released - released.mean()).std() == pytest.approx(z * bound / planned, rel=0.02)
    assert released.dtype == np.float32


def test_noise_at_the_sites_adds_up():
    z, bound, size, sites = 2.0, 0.5, 100_000, 4
    total = sum(noised(np.zeros(size, np.float32), z * bound).astype(np.float64) for _ in range(sites))
    assert total.std() == pytest.approx(z * bound * sites**0.5, rel=0.02)


@pytest.mark.parametrize("gamma", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("start", [1e-3, 300.0])
def test_the_norm_converges_to_the_quantile_from_above_and_below(gamma, start):
    """40 sites whose norms are log-normal around 1: after enough rounds about gamma of them are not clipped."""
    draw = np.random.default_rng(3)
    rule = AdaptiveNorm(multiplier=1.0, planned=40, gamma=gamma, initial=start)
    bound, late, directions = start, [], []
    wanted = float(np.quantile(np.exp(0.5 * draw.standard_normal(100_000)), gamma))
    for round in range(400):
        norms = np.exp(0.5 * draw.standard_normal(40))
        moved = rule.moved(bound, int((norms <= bound).sum()), draw)
        if round < 20:
            directions.append(moved > bound)
        bound = moved
        if round >= 250:
            late.append(bound)
    assert np.mean(directions) > 0.9 if start < wanted else np.mean(directions) < 0.1
    assert np.exp(np.mean(np.log(late))) == pytest.approx(wanted, rel=0.08)


def test_a_worked_round_of_adaptive_clipping():
    """All 20 clipped: b = 0, C grows by exp(0.2 * 0.5); none clipped: it shrinks by the same. Noise is left out."""

    class Silent(np.random.Generator):
        def standard_normal(self, size):  # type: ignore[override]
            return np.zeros(size)

    silent = Silent(np.random.PCG64(0))
    rule = AdaptiveNorm(multiplier=1.0, planned=20)
    assert rule.moved(1.0, 0, silent) == pytest.approx(math.exp(0.1))
    assert rule.moved(1.0, 20, silent) == pytest.approx(math.exp(-0.1))
    assert rule.moved(3.0, 10, silent) == 3.0
    assert rule.multiplier_of_sum == pytest.approx((1 - 1 / 4) ** -0.5)


def test_too_few_sites_for_a_private_count_are_refused():
    for multiplier, planned in ((0.8, 8), (1.0, 8), (3.0, 20)):
        with pytest.raises(IncompatiblePrivacy, match="DP inside each site"):
            AdaptiveNorm(multiplier=multiplier, planned=planned)
    assert AdaptiveNorm(multiplier=0.79, planned=8).multiplier_of_sum > 0.79
    with pytest.raises(IncompatiblePrivacy):
        AdaptiveNorm(multiplier=0.5, planned=40, gamma=1.0)
    with pytest.raises(ConfigError):
        AdaptiveNorm(multiplier=0.5, planned=40, initial=0.0)
