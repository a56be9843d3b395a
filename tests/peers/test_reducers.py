"""The reducers against the installed peers where those are right, and the peers' defects that ours must not have.

Flower's strategies average models and ours deltas; from a model of zeros that is the same.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polypfed import GeometricMedian, Krum, Mean, Median, MultiKrum, NormClip, TrimmedMean
from polypfed.core.messages import Update
from polypfed.core.model import Vector
from polypfed.core.reduce import Reducer

app = pytest.importorskip("flwr.app", exc_type=ImportError)
flower = pytest.importorskip("flwr.serverapp.strategy", exc_type=ImportError)

SHAPES = {"conv.weight": (4, 3), "conv.bias": (4,)}
VALUES = st.floats(-1000, 1000, width=32, allow_subnormal=False)


@pytest.fixture(autouse=True, scope="module")
def identity() -> Iterator[None]:
    """Flower builds messages inside a run only."""
    from flwr.supercore.task_identity import TaskIdentity  # type: ignore[import-not-found,unused-ignore]

    names = ("_run_id", "_node_id", "_task_id")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(TaskIdentity, name, 1)
        yield


def stacks(low: int, high: int = 8) -> st.SearchStrategy[np.ndarray]:
    return st.integers(low, high).flatmap(lambda m: arrays(np.float32, (m, 16), elements=VALUES))


def crowd(count: int = 9, spread: float = 1.0) -> np.ndarray:
    """Well separated updates of 16 values."""
    draw = np.random.default_rng(5)
    return (draw.standard_normal(16) + spread * draw.standard_normal((count, 16))).astype(np.float32)


def tensors(row: Vector) -> dict[str, np.ndarray]:
    return {"conv.weight": row[:12].reshape(4, 3), "conv.bias": row[12:]}


def messages(values: np.ndarray, weights: list[int] | None = None) -> list[Any]:
    """A Flower reply per row."""
    found = []
    for row, weight in zip(values, weights or [1] * len(values), strict=True):
        arrays_ = app.ArrayRecord({k: app.Array(v) for k, v in tensors(row).items()})
        content = app.RecordDict({"arrays": arrays_, "metrics": app.MetricRecord({"num-examples": weight})})
        found.append(app.Message(content, dst_node_id=1, message_type="train"))
    return found


def theirs(strategy: Any, values: np.ndarray, weights: list[int] | None = None) -> np.ndarray:
    """What Flower makes of the replies, flat."""
    record, _ = strategy.aggregate_train(1, messages(values, weights))
    return np.concatenate([record[name].numpy().ravel() for name in SHAPES])


def ours(rule: Reducer, values: np.ndarray, weights: list[int] | None = None) -> Vector:
    total = rule.start({"delta": values.shape[1]})
    for i, row in enumerate(values):
        total.add(i, Update(f"c{i}", 1, {"delta": row}, weights[i] if weights else 1))
    return total.result()["delta"]


# ------------------------------------------------------------------------------------------- where they are right


@settings(max_examples=30, deadline=None)
@given(stacks(2), st.randoms(use_true_random=False))
def test_the_mean_is_flowers(values: np.ndarray, luck: Any) -> None:
    weights = [luck.randint(1, 1000) for _ in values]
    wanted = theirs(flower.FedAvg(), values, weights)
    assert ours(Mean(), values, weights) == pytest.approx(wanted, rel=5e-6, abs=5e-4)


@settings(max_examples=30, deadline=None)
@given(stacks(1))
def test_the_median_is_flowers(values: np.ndarray) -> None:
    assert (ours(Median(), values) == theirs(flower.FedMedian(), values)).all()


@settings(max_examples=30, deadline=None)
@given(stacks(1), st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.34, 0.49]))
def test_the_trimmed_mean_is_flowers(values: np.ndarray, share: float) -> None:
    wanted = theirs(flower.FedTrimmedAvg(beta=share), values)
    assert ours(TrimmedMean(share), values) == pytest.approx(wanted, rel=5e-6, abs=5e-4)


@pytest.mark.parametrize("f", [0, 1, 2, 3])
def test_krum_is_flowers_on_well_separated_updates(f: int) -> None:
    values = crowd()
    wanted = theirs(flower.Krum(num_malicious_nodes=f), values)
    assert ours(Krum(f=f), values) == pytest.approx(wanted, rel=1e-6)
    for q in (1, 2, 4, 6):
        wanted = theirs(flower.MultiKrum(num_malicious_nodes=f, num_nodes_to_select=q), values)
        assert ours(MultiKrum(f=f, q=q), values) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(stacks(1), st.randoms(use_true_random=False))
def test_the_mean_is_nvflares(values: np.ndarray, luck: Any) -> None:
    helper = pytest.importorskip("nvflare.app_common.aggregators.weighted_aggregation_helper", exc_type=ImportError)
    weights = [luck.randint(1, 1000) for _ in values]
    total = helper.WeightedAggregationHelper()
    for i, (row, weight) in enumerate(zip(values, weights, strict=True)):
        total.add(tensors(row), float(weight), f"c{i}", 1)
    wanted = np.concatenate([v.ravel() for v in total.get_result().values()])
    assert ours(Mean(), values, weights) == pytest.approx(wanted, rel=5e-6, abs=5e-4)


# ------------------------------------------------------------------------------------------------- where they err


def test_t21_krum_of_near_equal_models() -> None:
    """Six models of a million values, squared distance 0.02: Flower computes negative ones, its choice is noise."""
    multikrum = pytest.importorskip("flwr.serverapp.strategy.multikrum", exc_type=ImportError)
    draw = np.random.default_rng(0)
    model = draw.standard_normal(1_000_000).astype(np.float32)
    deltas = (1e-4 * draw.standard_normal((6, model.size))).astype(np.float32)
    deltas[4] *= 0.5  # the one in the middle
    records = [app.ArrayRecord({"w": app.Array(model + row)}) for row in deltas]
    found = multikrum.compute_distances(records)
    assert (found < 0).any()
    assert ours(Krum(f=1), deltas).tobytes() == deltas[4].tobytes()


def test_t22_replies_are_not_emptied() -> None:
    replies = messages(crowd(3))
    flower.FedMedian().aggregate_train(1, replies)
    assert not list(replies[0].content["arrays"])  # the trap is one
    values = crowd(5)
    values.setflags(write=False)
    before = values.copy()
    for rule in (Median(), TrimmedMean(), Krum(f=1), MultiKrum(f=1), GeometricMedian(), NormClip()):
        ours(rule, values)
    assert (values == before).all()


def test_t25_one_nan_ruins_flowers_means_and_medians() -> None:
    """What ours do in a federation, where the gate stands before them: tests/strategies/test_reducers_run.py."""
    values = crowd(3)
    values[1, 3] = np.nan
    for strategy in (flower.FedAvg(), flower.FedMedian()):
        assert np.isnan(theirs(strategy, values)).any()


def test_t29_arrival_order_changes_nvflares_bits_and_not_ours() -> None:
    helper = pytest.importorskip("nvflare.app_common.aggregators.weighted_aggregation_helper", exc_type=ImportError)
    from itertools import permutations

    from polypfed.core.reduce import InOrder

    values, names = crowd(5) * 10.0 ** np.arange(-2, 3, dtype=np.float32)[:, None], [f"c{i}" for i in range(5)]
    patterns = set()
    for order in permutations(range(5)):
        total = helper.WeightedAggregationHelper()
        for i in order:
            total.add({"w": values[i]}, 1.0, names[i], 1)
        patterns.add(total.get_result()["w"].tobytes())
    assert len(patterns) > 1
    for rule in (Mean(), Mean(dtype="float32"), TrimmedMean(0.2), GeometricMedian(), NormClip()):
        mine = set()
        for order in list(permutations(range(5)))[::7]:
            queue = InOrder(rule.start({"delta": 16}), names)
            for i in order:
                queue.add(Update(names[i], 1, {"delta": values[i]}, 1))
            mine.add(queue.result()["delta"].tobytes())
        assert len(mine) == 1


def test_t24_large_weights_overflow_no_sum() -> None:
    """NVFlare sums weighted fp16 in fp16; ours is wide whatever the wire carried."""
    helper = pytest.importorskip("nvflare.app_common.aggregators.weighted_aggregation_helper", exc_type=ImportError)
    values, total = np.full((2, 4), 30, np.float16), helper.WeightedAggregationHelper()
    with np.errstate(over="ignore"):
        for i, row in enumerate(values):
            total.add({"w": row}, np.float16(5000), f"c{i}", 1)
    assert not np.isfinite(total.get_result()["w"]).all()
    assert ours(Mean(), values.astype(np.float32), [5000, 5000]).tolist() == [30] * 4
    assert ours(Mean(dtype="float32"), values.astype(np.float32), [10_000_000] * 2).tolist() == [30] * 4
