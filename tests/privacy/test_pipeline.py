import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from polypfed.core.errors import ConfigError, StateError
from polypfed.core.reduce import Mean
from polypfed.privacy import disclosure
from polypfed.privacy.dp import AdaptiveNorm
from polypfed.privacy.errors import IncompatiblePrivacy
from polypfed.privacy.pipeline import compose
from polypfed.privacy.stage import At, Clip, Encrypt, Mask, Noise, Quantise, RandomK, Stage, TopK


@dataclass(frozen=True)  # it names itself: test ids must be the same in every process
class Median:
    needs = "updates"


CLIP = Clip(2.0)
LOCAL = Noise(1.5, where="site", clip=CLIP)
CENTRAL = Noise(1.5, clip=CLIP)
MOVING = Clip(1.0, adaptive=AdaptiveNorm(multiplier=0.5, planned=20))
ALL = [CLIP, LOCAL, CENTRAL, RandomK(0.2), TopK(0.2), TopK(0.2, common=False), Quantise(), Encrypt(), Mask()]


@pytest.mark.parametrize(
    ("stages", "mode"),
    [
        ([], "plain"),
        ([TopK(0.1)], "plain"),
        ([TopK(0.1, common=False)], "plain"),
        ([CLIP, CENTRAL], "dp"),
        ([CLIP, LOCAL, TopK(0.1), Quantise()], "dp"),
        ([Quantise(), Encrypt()], "he"),
        ([CLIP, LOCAL, TopK(0.1), Quantise(), Encrypt()], "he"),
        ([CLIP, Quantise(cap=500), Mask()], "secagg"),
        ([Quantise(), Mask(), Encrypt(profile="tc256")], "hybrid"),
        ([MOVING, Noise(0.5, clip=MOVING)], "dp"),
    ],
    ids=str,
)
def test_legal_orders_are_taken(stages, mode):
    assert compose(stages, sites=5, reducer=Mean()).mode == mode


@pytest.mark.parametrize(
    ("stages", "more", "reason"),
    [
        ([LOCAL, CLIP], {}, "no known sensitivity"),
        ([LOCAL], {}, "without the clip"),
        ([Clip(1.0), LOCAL], {}, "without the clip"),
        ([TopK(), CLIP], {}, "must be clipped and noised before"),
        ([Quantise(), LOCAL], {}, "must be clipped and noised before"),
        ([Encrypt(), Quantise()], {}, "can only be added"),
        ([Encrypt(), Mask()], {}, "can only be added"),
        ([CLIP, CLIP], {}, "two stages of kind clip"),
        ([Quantise(), Quantise(), Encrypt()], {}, "two stages of kind compress"),
        ([Quantise(), TopK(), Encrypt()], {}, "two stages of kind compress"),
        ([Encrypt()], {}, "nothing quantises"),
        ([CLIP, TopK(), Mask()], {}, "nothing quantises"),
        ([Quantise(), Encrypt()], {"reducer": Median()}, "Median must see single updates, and under he"),
        ([Quantise(), Mask()], {"reducer": Median()}, "under secagg"),
        ([Quantise(), Mask(), Encrypt()], {"reducer": Median()}, "under hybrid"),
        ([CLIP, CENTRAL], {"reducer": Median()}, "sensitivity is not the clip's"),
        ([Quantise(), Encrypt()], {"sites": 1}, "2 are needed"),
        ([Quantise(), Mask()], {"sites": 2}, "3 are needed: from the sum of two"),
        ([Quantise(), Mask(), Encrypt()], {"sites": 2}, "3 are needed"),
        ([Quantise(), Mask(threshold=2)], {}, "no majority"),
        ([Quantise(), Mask(threshold=6)], {}, "no majority"),
        ([TopK(common=False), Quantise(), Encrypt()], {}, "does not add up under he"),
        ([TopK(common=False), Quantise(), Mask()], {}, "does not add up under secagg"),
        ([CLIP, CENTRAL], {"weights": "examples"}, "weights by examples"),
        ([CLIP, LOCAL, Quantise(cap=10), Encrypt()], {}, "weights by examples"),
        ([CLIP, CENTRAL, Quantise(), Encrypt()], {}, "no sum to add it to"),
        ([CLIP, CENTRAL, TopK()], {}, "no longer bounds"),
        ([CLIP, CENTRAL, Quantise(), Mask()], {}, "no longer bounds"),
        ([MOVING, Quantise(), Encrypt()], {}, "adaptive clipping under he"),
    ],
    ids=str,
)
def test_illegal_ones_are_refused_with_the_reason_and_a_way_out(stages, more, reason):
    with pytest.raises(IncompatiblePrivacy, match=reason) as caught:
        compose(stages, **{"sites": 5, **more})
    assert caught.value.remedy


def test_too_many_bits_or_sites_are_refused_when_it_is_built():
    with pytest.raises(ConfigError, match="too many"):
        compose([Quantise(bits=40), Encrypt()], sites=8)
    with pytest.raises(ConfigError, match="sites"):
        compose([Quantise(), Encrypt()], sites=500)


@pytest.mark.parametrize("stage", ALL, ids=lambda s: type(s).__name__)
def test_every_stage_keeps_the_contract(stage):
    """What a stage of a third party must do as well."""
    assert isinstance(stage, Stage)
    draw = np.random.default_rng(0)
    vector = draw.normal(size=100).astype(np.float32)
    vector.setflags(write=False)
    at = At(seed=1, round=2, site="a", reference=draw.normal(size=100).astype(np.float32), simulate=True)
    first, state = stage.forward(vector, {}, at)
    again, _ = stage.forward(vector, {}, at)
    np.testing.assert_array_equal(first, again)  # pure: the same arguments, the same result
    assert first.dtype == np.float32
    assert first.shape == (stage.size(100),)
    assert all(isinstance(v, np.ndarray) and v.dtype == np.float32 for v in state.values())
    stage.forward(vector, state, at)
    assert stage.backward(first, at, 100).shape == (100,)
    if stage.linear and stage.kind == "compress":
        two, _ = stage.forward(2 * vector, {}, at)
        np.testing.assert_allclose(two, 2 * first, rtol=1e-6)
    if stage.kind in ("noise", "clip") and not (stage.kind == "noise" and stage.where == "server"):
        assert (first != vector).any()


def test_a_whole_round_through_all_stages():
    line = compose([CLIP, LOCAL, TopK(0.25), Quantise(bits=10, bound=20.0), Mask()], sites=4)
    draw, length = np.random.default_rng(0), 400
    reference = draw.normal(size=length).astype(np.float32)
    total, codec, sent = 0, line.codec(line.lengths(length)[-1]), []
    for site in "abcd":
        at = At(seed=7, round=3, site=site, reference=reference, simulate=True)
        values, state = line.forward(draw.normal(size=length).astype(np.float32), {}, at)
        assert set(state) == {"2.residual"}
        encoded, after = line.encode(codec, values, 1, {}, state, at)
        assert set(after) == {"2.residual"}
        total, sent = total + encoded.slots.astype(np.uint64), [*sent, values]
    mean = line.backward(codec.decode(total, expect=4).mean, At(seed=7, round=3, reference=reference), length)
    assert np.count_nonzero(mean) <= 100
    indices = TopK(0.25).indices(length, At(seed=7, round=3, reference=reference))
    np.testing.assert_allclose(mean[indices], np.mean(sent, axis=0), atol=2 * 20 / 1022)
    json.dumps(line.describe())
    assert [d["stage"] for d in line.describe()] == ["Clip", "Noise", "TopK", "Quantise", "Mask"]


def test_states_of_stages_do_not_mix_and_residuals_come_back():
    line = compose([RandomK(0.5), TopK(0.5)], sites=2)
    at = At(seed=0, round=1, site="a")
    values, state = line.forward(np.ones(64, np.float32), {}, at)
    assert {k: v.size for k, v in state.items()} == {"0.residual": 64, "1.residual": 32}
    assert values.size == 16
    held = sum(float(v.sum()) for v in state.values()) + float(values.sum())
    assert held == 64
    values, after = line.forward(np.zeros(64, np.float32), state, At(seed=0, round=2, site="a"))
    assert sum(float(v.sum()) for v in after.values()) + float(values.sum()) == 48


def test_the_moving_norm_scales_clip_and_noise_of_its_round():
    line = compose([MOVING, Noise(0.5, clip=MOVING)], sites=20)
    at = At(seed=0, round=1, norm=0.25, simulate=True, count=20, planned=20)
    sent, _ = line.forward(np.ones(10_000, np.float32), {}, at)
    assert np.linalg.norm(sent) == pytest.approx(0.25, rel=1e-4)
    z = MOVING.adaptive.multiplier_of_sum
    released = line.backward(np.zeros(100_000, np.float32), at, 100_000)
    assert released.std() == pytest.approx(z * 0.25 / 20, rel=0.02)
    with pytest.raises(StateError, match="not known"):
        line.forward(np.ones(3, np.float32), {}, At(seed=0, round=1))


def test_noise_in_the_field_does_not_come_from_the_seed():
    stage, vector, at = LOCAL, np.zeros(10, np.float32), At(seed=0, round=1, site="a")
    assert (stage.forward(vector, {}, at)[0] != stage.forward(vector, {}, at)[0]).any()


def test_the_table_has_a_row_for_every_mode_and_says_the_worst():
    assert [r["mode"] for r in disclosure.rows()] == ["plain", "dp", "he", "secagg", "hybrid"]
    assert disclosure.rows(mode="he")[0]["leaked_site"] == "every update of the key's lifetime"
    assert set(disclosure.rows()[0]) == set(disclosure.HEADINGS)
    assert math.prod(bool(v) for row in disclosure.rows() for v in row.values())
    with pytest.raises(ConfigError, match="not one of"):
        disclosure.rows(mode="none")


@pytest.mark.parametrize("share", [None, 0.3])
def test_nothing_is_lost_over_the_rounds_though_the_indices_change(share):
    """What was sent and what is kept add up to what was to be sent, weighted by n / cap."""
    stages = [*([RandomK(share)] if share else []), Quantise(bits=4, bound=0.05, cap=100)]
    line = compose(stages, sites=4, weights="examples")
    draw, state, sent, wanted = np.random.default_rng(0), {}, np.zeros(200), np.zeros(200)
    codec = line.codec(line.lengths(200)[-1])
    for number in range(1, 60):
        at, vector = At(seed=3, round=number, site="a"), draw.normal(0, 0.05, 200).astype(np.float32)
        values, kept = line.forward(vector, state, at)
        out, state = line.encode(codec, values, 50, state, kept, at)
        sent += line.backward(codec.decode(out.slots).mean, at, 200)
        wanted += vector
    left = state["0.residual"] if share else state["rounding"] / 0.5
    np.testing.assert_allclose(sent + left, wanted, atol=1e-4)
