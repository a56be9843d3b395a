"""The oracles: numpy, scipy's optimiser, and the papers' sentences written down plainly in float64."""

import random
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from polypfed.core.errors import ConfigError
from polypfed.core.messages import Update, encode
from polypfed.core.model import Vector
from polypfed.core.reduce import BUFFERS, InOrder, Mean, Reducer
from polypfed.core.robust import GeometricMedian, Held, Krum, Median, MultiKrum, NormClip, TrimmedMean

ROBUST: list[Any] = [
    Median(),
    TrimmedMean(0.3),
    Krum(f=2),
    MultiKrum(f=2),
    GeometricMedian(),
    NormClip(weights="uniform"),
]
RULES: list[Any] = [
    *ROBUST,
    NormClip(norm=0.5),
    GeometricMedian("examples"),
    NormClip(),
    NormClip(refuse_opposed=True),
    TrimmedMean(0),
]
VALUES = st.floats(-1000, 1000, width=32, allow_subnormal=False)


def stacks(low: int = 1, high: int = 9) -> st.SearchStrategy[np.ndarray]:
    """Updates as rows."""
    return st.integers(low, high).flatmap(lambda m: arrays(np.float32, (m, 3), elements=VALUES))


def updates(values: Any, weights: Sequence[int] | None = None, **extra: Any) -> list[Update]:
    """One update a row, in order of name; `extra` holds more vectors, a row each."""
    rows = np.asarray(values, np.float32)
    return [
        Update(f"c{i:03d}", 1, {"delta": row} | {k: np.asarray(v[i], np.float32) for k, v in extra.items()}, w)
        for i, (row, w) in enumerate(zip(rows, weights or [1] * len(rows), strict=True))
    ]


def reduced(rule: Reducer, got: Sequence[Update], names: Sequence[str] | None = None) -> Mapping[str, Vector]:
    """What `rule` makes of updates that arrive in this order."""
    lengths = {name: vector.size for name, vector in got[0].vectors.items()}
    queue = InOrder(rule.start(lengths), names or [u.client for u in got])
    for update in got:
        queue.add(update)
    return queue.result()


def delta(rule: Reducer, values: Any, weights: Sequence[int] | None = None) -> Vector:
    return reduced(rule, updates(values, weights))["delta"]


def crowd(count: int = 9, size: int = 40, seed: int = 0) -> np.ndarray:
    """Honest updates: a common direction and noise."""
    draw = np.random.default_rng(seed)
    return (draw.standard_normal(size) + 0.3 * draw.standard_normal((count, size))).astype(np.float32)


def krum_scores(values: np.ndarray, f: int) -> list[float]:
    """The paper's words: the sum of the squared distances to the m - f - 2 nearest others."""
    wide = values.astype(np.float64)
    return [
        sum(sorted(float(((a - b) ** 2).sum()) for j, b in enumerate(wide) if j != i)[: len(wide) - f - 2])
        for i, a in enumerate(wide)
    ]


# ------------------------------------------------------------------------------------------------- each by its paper


@given(stacks())
@settings(max_examples=50, deadline=None)
def test_the_median_of_each_value(values: np.ndarray) -> None:
    assert (delta(Median(), values) == np.median(values, axis=0)).all()


@given(stacks(), st.floats(0, 0.499))
@settings(max_examples=50, deadline=None)
def test_the_trimmed_mean_drops_the_floor_of_the_share_of_what_arrived(values: np.ndarray, share: float) -> None:
    cut = int(np.floor(share * len(values)))
    wanted = np.sort(values.astype(np.float64), axis=0)[cut : len(values) - cut].mean(axis=0)
    assert delta(TrimmedMean(share), values) == pytest.approx(wanted, rel=1e-6, abs=1e-4)


@given(st.integers(0, 2).flatmap(lambda f: st.tuples(st.just(f), stacks(2 * f + 3, 2 * f + 6))))
@settings(max_examples=80, deadline=None)
def test_krum_takes_an_update_of_least_score(case: tuple[int, np.ndarray]) -> None:
    f, values = case
    scores = krum_scores(values, f)
    found = delta(Krum(f=f), values)
    mine = [score for row, score in zip(values, scores, strict=True) if (row == found).all()]
    assert mine
    assert min(mine) <= min(scores) * (1 + 1e-5)


def test_krum_by_hand() -> None:
    """m = 5, f = 1: two nearest others. 0: 1 + 4; 1: 1 + 1; 2: 1 + 1; 3: 1 + 4; 90 is far. 1 and 2 tie: the first."""
    assert delta(Krum(f=1), [[0], [1], [2], [3], [90]]).tolist() == [1]
    assert delta(Krum(f=1), [[90], [3], [2], [1], [0]]).tolist() == [2]
    assert delta(MultiKrum(f=1), [[0], [1], [2], [3], [90]]).tolist() == [1.5]  # q = m - f - 2 = 2
    assert delta(MultiKrum(f=1, q=4), [[0], [1], [2], [3], [90]]).tolist() == [1.5]
    assert delta(MultiKrum(f=1, q=3), [[0], [1], [2], [3.5], [90]]).tolist() == [1]
    assert delta(MultiKrum(f=1, q=1), [[0], [1], [2], [3], [90]]).tolist() == [1]


@given(stacks(5, 9), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_multi_krum_is_the_even_mean_of_the_best(values: np.ndarray, q: int) -> None:
    got = updates(values, range(1, len(values) + 1))
    best = Krum(f=1).ranked(got)[:q]
    wanted = values[sorted(best)].astype(np.float64).mean(axis=0)
    assert reduced(MultiKrum(f=1, q=q), got)["delta"] == pytest.approx(wanted, rel=1e-6, abs=1e-4)
    scores = krum_scores(values, 1)
    assert max(scores[i] for i in best) <= sorted(scores)[q - 1] * (1 + 1e-5)


@pytest.mark.parametrize("weights", [None, [1, 2, 3, 4, 5, 6, 7]])
def test_the_geometric_median_minimises_the_sum_of_distances(weights: list[int] | None) -> None:
    values = crowd(7, 4, seed=2)
    values[0] += 20
    shares = np.asarray(weights or [1] * 7, float)

    def total(z: np.ndarray) -> float:
        return float(shares @ np.linalg.norm(values - z, axis=1))

    def found(steps: int) -> Vector:
        named = {f"c{i:03d}": float(w) for i, w in enumerate(weights or [])}
        return delta(GeometricMedian(named or "uniform", T=steps), values)

    best = minimize(total, np.median(values, axis=0).astype(np.float64))
    assert total(found(200)) <= best.fun * (1 + 1e-6)
    assert found(200) == pytest.approx(best.x, abs=0.01)
    losses = [total(found(steps)) for steps in (1, 2, 3, 10)]
    assert losses == sorted(losses, reverse=True)  # each step of the iteration lowers it
    assert losses[2] < best.fun * 1.001


def test_the_first_step_to_the_geometric_median_by_hand() -> None:
    """The medians of 0, 2, 1 and of 0, 0, 3 are 1 and 0; the distances 1, 1, 3; so b = 1, 1, 1/3."""
    assert delta(GeometricMedian(T=1), [[0, 0], [2, 0], [1, 3]]) == pytest.approx([1, 3 / 7])
    named = GeometricMedian({"c000": 1, "c001": 2, "c002": 3}, T=1)
    assert delta(named, [[0, 0], [2, 0], [1, 3]]) == pytest.approx([1.25, 0.75])
    claimed = delta(GeometricMedian("examples", T=1), [[0, 0], [2, 0], [1, 3]], [1, 2, 900])  # 1, 2, 2
    assert claimed == pytest.approx([14 / 11, 6 / 11])


def test_the_geometric_median_may_be_an_update() -> None:
    found = delta(GeometricMedian(T=50), [[1, 2], [1, 2], [1, 2], [9, 9]])
    assert found == pytest.approx([1, 2], abs=1e-6)


@given(stacks(), st.floats(0.01, 1e4))
@settings(max_examples=50, deadline=None)
def test_clipping_to_a_norm(values: np.ndarray, limit: float) -> None:
    wide, weights = values.astype(np.float64), range(1, len(values) + 1)
    factors = [min(1, limit / max(np.linalg.norm(row), 1e-300)) for row in wide]
    wanted = np.average(wide * np.array(factors)[:, None], axis=0, weights=list(weights))
    assert delta(NormClip(norm=limit), values, list(weights)) == pytest.approx(wanted, rel=1e-5, abs=1e-4)
    assert np.linalg.norm(delta(NormClip(norm=limit), values)) <= limit * (1 + 1e-6)


def _median_norm(values: np.ndarray) -> float:
    return float(np.median(np.linalg.norm(values.astype(np.float64), axis=1)))


@given(stacks())
@settings(max_examples=50, deadline=None)
def test_clipping_to_the_median_norm_is_clipping_to_that_norm(values: np.ndarray) -> None:
    limit = _median_norm(values)
    wanted = delta(NormClip(norm=limit), values) if limit else np.zeros(3)
    assert delta(NormClip(), values) == pytest.approx(wanted, rel=1e-6, abs=1e-5)


def test_claimed_examples_count_up_to_their_median() -> None:
    values = np.array([[3.0, 4.0], [4.0, 3.0], [0.0, 5.0], [-5.0, 0.0]])  # all of one length
    honest = delta(NormClip(), values, [5, 10, 20, 20])
    assert honest == pytest.approx(np.average(values, axis=0, weights=[5, 10, 15, 15]), rel=1e-6)
    assert delta(NormClip(), values, [5, 10, 20, 10_000_000]).tobytes() == honest.tobytes()
    believed = delta(Mean(), values, [5, 10, 20, 10_000_000])
    assert believed == pytest.approx([-5, 0], abs=1e-4), "the plain mean is the one that claims most"


def test_what_points_against_the_others_is_left_out_with_all_it_holds() -> None:
    values, statistics, extra = crowd(5), crowd(5, 4, seed=1), crowd(5, 40, seed=2)
    values += 5  # they agree
    values[2] *= -1e4
    weights = [5, 10, 10_000_000, 20, 30]
    got = updates(values, weights, **{BUFFERS: statistics, "extra": extra})
    rule = NormClip(refuse_opposed=True)
    total = rule.start({name: vector.size for name, vector in got[0].vectors.items()})
    for index, update in enumerate(got):
        total.add(index, update)
    alone = [update for i, update in enumerate(got) if i != 2]
    assert {k: v.tobytes() for k, v in total.result().items()} == {
        k: v.tobytes() for k, v in reduced(NormClip(), alone).items()
    }
    assert total.refused() == {"c002": "points against the other 4, which agree"}
    assert abs(reduced(NormClip(), got)["delta"] - reduced(rule, got)["delta"]).min() > 1


def test_without_anything_against_the_others_the_bits_are_those_of_the_clip() -> None:
    for values in (crowd(7), crowd(4), np.zeros((6, 3)), np.eye(6) - 1 / 6):
        found = delta(NormClip(refuse_opposed=True), values, range(1, len(values) + 1))
        assert found.tobytes() == delta(NormClip(), values, range(1, len(values) + 1)).tobytes()


@pytest.mark.parametrize("rule", [NormClip(), GeometricMedian()], ids=repr)
def test_noise_no_longer_than_the_others_leaves_every_statistic_among_them(rule: Reducer) -> None:
    draw = np.random.default_rng(0)
    scale = 10.0 ** draw.uniform(-3, 1, 40)  # of the channels: their statistics have little in common
    statistics = draw.normal(1, 0.1, (5, 40)) * scale
    noise = draw.standard_normal(40)
    statistics[2] = noise * np.linalg.norm(statistics[0]) / np.linalg.norm(noise)
    found = reduced(rule, updates(crowd(5), [1, 1, 10_000_000, 1, 1], **{BUFFERS: statistics}))[BUFFERS]
    honest = np.delete(statistics, 2, axis=0)
    assert (found >= honest.min(0) * (1 - 1e-6)).all()
    assert (found <= honest.max(0) * (1 + 1e-6)).all()
    assert (np.abs(statistics.mean(0) - honest.mean(0)) > honest.mean(0)).mean() > 0.3, "by the mean many are lost"


def test_t17_nothing_learnt_is_no_division_by_zero() -> None:
    for rule in RULES:
        assert delta(rule, np.zeros((7, 3))).tolist() == [0, 0, 0]
    assert delta(NormClip(norm=1.0), [[0, 0], [3, 4]]) == pytest.approx([0.3, 0.4])


# ----------------------------------------------------------------------------------------------------- what all keep


@pytest.mark.parametrize("rule", ROBUST, ids=repr)
@pytest.mark.parametrize("size", [1e6, -1e6, 1e20])
@pytest.mark.parametrize("where", ["first", "last", "spread"])
def test_breakdown(rule: Reducer, size: float, where: str) -> None:
    """Two bad of nine move no result out of the honest crowd, however large and in whatever place they are."""
    honest = crowd()
    bad = {"first": [0, 1], "last": [7, 8], "spread": [2, 6]}[where]
    values = honest.copy()
    values[bad] = size
    found = delta(rule, values)
    kept = np.delete(honest, bad, axis=0)
    reach = np.linalg.norm(kept - kept.mean(axis=0), axis=1).max()
    ruined = delta(Mean("uniform"), values).astype(np.float64)
    bound = 3 * reach if not isinstance(rule, NormClip) else 1.5 * np.median(np.linalg.norm(kept, axis=1))
    assert np.linalg.norm(found - kept.mean(axis=0)) < bound
    assert np.linalg.norm(ruined - kept.mean(axis=0)) > 1e5


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(0.3), GeometricMedian(), NormClip(weights="uniform")], ids=repr)
def test_bad_buffers_and_extras_are_withstood_too(rule: Reducer) -> None:
    buffers, extra = crowd(9, 4, seed=1), crowd(9, 40, seed=2)
    got = updates(crowd(), [1] * 9, **{BUFFERS: buffers, "extra": extra})
    for victim in (BUFFERS, "extra"):
        bad = [
            u if i not in (3, 4) else Update(u.client, 1, {**u.vectors, victim: u.vectors[victim] + 1e6}, 1)
            for i, u in enumerate(got)
        ]
        assert abs(reduced(rule, bad)[victim]).max() < 10
        assert reduced(rule, bad)["delta"].tobytes() == reduced(rule, got)["delta"].tobytes()


def test_krum_takes_everything_from_those_it_picked() -> None:
    values, buffers = [[0], [1], [2], [3], [90]], [[10], [11], [12], [13], [14]]
    got = updates(values, [5, 1, 9, 2, 3], **{BUFFERS: buffers, "extra": buffers})
    assert {k: v.tolist() for k, v in reduced(Krum(f=1), got).items()} == {"delta": [1], BUFFERS: [11], "extra": [11]}
    found = reduced(MultiKrum(f=1), got)
    assert {k: v.tolist() for k, v in found.items()} == {"delta": [1.5], BUFFERS: [11.5], "extra": [11.5]}


def test_clipping_to_a_given_norm_leaves_buffers_and_extras_to_the_mean() -> None:
    got = updates([[3, 4], [0, 0]], [1, 3], **{BUFFERS: [[4], [8]], "extra": [[6, 8], [2, 0]]})
    found = reduced(NormClip(norm=1.0, weights="uniform"), got)
    assert found["delta"] == pytest.approx([0.3, 0.4])
    assert (found[BUFFERS].tolist(), found["extra"].tolist()) == ([7], [4, 4])
    assert found[BUFFERS].tolist() == reduced(Mean("uniform"), got)[BUFFERS].tolist()


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_running_variances_stay_positive(rule: Reducer) -> None:
    """Buffers are moved to somewhere among what the sites have, or back towards the old ones."""
    draw = np.random.default_rng(4)
    old, new = draw.random(50) * 100, draw.random((7, 50)) * 100
    got = updates(crowd(7), [3] * 7, **{BUFFERS: new - old})
    assert (old + reduced(rule, got)[BUFFERS] > -1e-4).all()


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_arrival_order_changes_no_bit(rule: Reducer) -> None:
    """T29: five float32 updates in all orders; more in some."""
    got = updates(crowd(7) * 10.0 ** np.arange(-3, 4)[:, None], range(1, 8))
    names = [u.client for u in got]
    straight = encode(Update("", 1, reduced(rule, got), 1))
    orders = [*list(permutations(got))[::97], got[::-1]]
    assert {encode(Update("", 1, reduced(rule, order, names), 1)) for order in orders} == {straight}


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_t22_what_came_is_not_changed(rule: Reducer) -> None:
    got = updates(crowd(7), range(1, 8), **{BUFFERS: crowd(7, 3)})
    before = [encode(u) for u in got]
    for update in got:
        for vector in update.vectors.values():
            vector.setflags(write=False)
    found = reduced(rule, got)
    assert [encode(u) for u in got] == before
    assert not any(np.shares_memory(found[k], u.vectors[k]) for u in got for k in found)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_sender_may_use_its_buffer_again_at_once(rule: Reducer) -> None:
    values = crowd(7)
    buffer = np.empty(values.shape[1], np.float32)
    queue = InOrder(rule.start({"delta": buffer.size}), [f"c{i}" for i in range(7)])
    for i in (3, 0, 6, 5, 1, 2, 4):
        buffer[:] = values[i]
        queue.add(Update(f"c{i}", 1, {"delta": buffer}, 1))
    assert queue.result()["delta"].tobytes() == delta(rule, values).tobytes()


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_updates_without_examples_do_not_count(rule: Reducer) -> None:
    values = crowd(9)
    weights = [2, 0, 3, 4, 5, 0, 6, 7, 8]
    alone = [w for w in weights if w]
    wanted = delta(rule, values[[i for i, w in enumerate(weights) if w]], alone)
    values[[1, 5]] = 1e30
    assert delta(rule, values, weights).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_round_without_examples_is_zeros(rule: Reducer) -> None:
    assert delta(rule, crowd(5), [0] * 5).tolist() == [0.0] * 40
    assert {k: v.tolist() for k, v in rule.start({"delta": 2, BUFFERS: 1}).result().items()} == {
        "delta": [0, 0],
        BUFFERS: [0],
    }


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_model_without_buffers_and_one_value(rule: Reducer) -> None:
    found = reduced(rule, updates(np.full((7, 1), 0.4), **{BUFFERS: np.zeros((7, 0))}))
    assert (found["delta"].shape, found[BUFFERS].shape) == ((1,), (0,))
    assert found["delta"].dtype == found[BUFFERS].dtype == np.float32


@given(st.permutations(range(7)), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_who_is_called_what_does_not_matter(order: list[int], luck: random.Random) -> None:
    values = crowd(7, 8)
    for rule in ROBUST:
        assert delta(rule, values[order]) == pytest.approx(delta(rule, values), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("rule", ROBUST[:5], ids=repr)
def test_shifting_every_update_shifts_the_result(rule: Reducer) -> None:
    values, shift = crowd(9), np.float32(2.5)
    assert delta(rule, values + shift) == pytest.approx(delta(rule, values) + shift, rel=1e-5, abs=1e-5)


def test_claimed_examples_buy_nothing() -> None:
    values = crowd(9)
    values[8] = 1e6
    for rule in ROBUST:
        assert delta(rule, values, [1] * 8 + [10_000_000]).tobytes() == delta(rule, values).tobytes()


# ------------------------------------------------------------------------------------------------------ equivalences


@given(stacks(1, 2))
@settings(max_examples=50, deadline=None)
def test_the_median_of_one_or_two_is_the_mean(values: np.ndarray) -> None:
    assert delta(Median(), values) == pytest.approx(delta(Mean("uniform"), values), rel=2e-7, abs=1e-30)


@given(stacks())
@settings(max_examples=50, deadline=None)
def test_trimming_nothing_is_the_mean_bit_for_bit(values: np.ndarray) -> None:
    assert (delta(TrimmedMean(0), values) == delta(Mean("uniform"), values)).all()
    assert (delta(TrimmedMean(0.1), values) == delta(Mean("uniform"), values)).all()  # fewer than ten: k = 0


@given(stacks())
@settings(max_examples=50, deadline=None)
def test_a_norm_nobody_reaches_is_the_mean_bit_for_bit(values: np.ndarray) -> None:
    weights = list(range(1, len(values) + 1))
    assert delta(NormClip(norm=1e9), values, weights).tobytes() == delta(Mean(), values, weights).tobytes()


@pytest.mark.parametrize("rule", [*ROBUST, NormClip(norm=1e9)], ids=repr)
@given(arrays(np.float32, 5, elements=VALUES))
@settings(max_examples=20, deadline=None)
def test_identical_updates_give_any_of_them(rule: Reducer, row: np.ndarray) -> None:
    assert delta(rule, np.stack([row] * 8)) == pytest.approx(row, rel=2e-7, abs=1e-30)


def test_names_may_have_weights() -> None:
    values, by_name = crowd(5), {f"c{i:03d}": i + 1.0 for i in range(5)}
    capped = {f"c{i:03d}": min(i + 1.0, 3.0) for i in range(5)}
    by_examples = delta(GeometricMedian(weights="examples"), values, [1, 2, 3, 4, 10_000_000])
    assert delta(GeometricMedian(weights=capped), values) == pytest.approx(by_examples)
    named = delta(NormClip(weights=by_name), values, [1, 1, 1, 1, 10_000_000])
    assert named == pytest.approx(delta(NormClip(norm=_median_norm(values)), values, range(1, 6)))


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrimmedMean(0.5), "share: 0.5 from both ends leaves nothing"),
        (lambda: TrimmedMean(-0.1), "share"),
        (lambda: TrimmedMean(float("nan")), "share"),
        (lambda: TrimmedMean("0.2"), "share"),  # type: ignore[arg-type]
        (lambda: Krum(f=-1), "f: -1 is not a whole number of at least 0"),
        (lambda: Krum(f=1.0), "f: 1.0"),  # type: ignore[arg-type]
        (lambda: Krum(f=True), "f: True"),
        (lambda: MultiKrum(f=-1), "f: -1"),
        (lambda: MultiKrum(f=1, q=0), "q: 0"),
        (lambda: GeometricMedian(T=0), "T: 0"),
        (lambda: GeometricMedian(nu=0), "nu: 0"),
        (lambda: GeometricMedian(weights="even"), "weights: 'even'"),  # type: ignore[arg-type]
        (lambda: GeometricMedian(weights={"a": -1.0}), r"weights\.a: -1"),
        (lambda: NormClip(norm=0), "norm: 0"),
        (lambda: NormClip(norm=float("inf")), "norm: inf"),
        (lambda: NormClip(weights="even"), "weights: 'even'"),  # type: ignore[arg-type]
        (lambda: NormClip(refuse_opposed=1), "refuse_opposed: 1 is not true or false"),  # type: ignore[arg-type]
        (lambda: NormClip(norm=1.0, refuse_opposed=True), "refuse_opposed: sums show no single update"),
    ],
)
def test_settings_out_of_their_domain(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_the_least_each_can_work_with() -> None:
    assert [Krum(f=f).least for f in (0, 1, 2)] == [3, 5, 7]
    assert [MultiKrum(f=1, q=q).least for q in (None, 1, 4, 7)] == [5, 5, 5, 8]
    assert {r.least for r in (Median(), TrimmedMean(), GeometricMedian(), NormClip(), NormClip(norm=1.0))} == {1}


@pytest.mark.parametrize(("f", "count"), [(f, c) for f in (0, 1, 2) for c in range(1, 2 * f + 3)])
def test_krum_never_guesses(f: int, count: int) -> None:
    with pytest.raises(ConfigError, match=f"{count} updates, f = {f} needs {2 * f + 3}"):
        delta(Krum(f=f), crowd(count))


def test_what_a_channel_of_sums_can_carry() -> None:
    assert [r.needs for r in ROBUST] == ["updates"] * 6
    assert NormClip(norm=1.0).needs == "sum"
    assert not isinstance(NormClip(norm=1.0).start({"delta": 1}), Held)


def test_no_pair_of_bad_updates_may_be_picked_together() -> None:
    """Krum's promise, tried on all pairs of places: two equal bad updates are each other's nearest, and yet lose."""
    for bad in combinations(range(7), 2):
        values = crowd(7)
        values[list(bad)] = crowd(7).mean(axis=0) + 3
        assert delta(Krum(f=2), values).tolist() in np.delete(values, bad, axis=0).tolist()
