"""What travels as DXOs comes back as it was; what is wrong with a reply is a Failure with the gate's word for it."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
    from nvflare.apis.fl_constant import ReturnCode
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable, make_reply
    from nvflare.app_common.decomposers import numpy_decomposers
    from nvflare.app_common.filters.exclude_vars import ExcludeVars
    from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
    from nvflare.app_common.filters.svt_privacy import SVTPrivacy
    from nvflare.fuel.utils import fobs

from polypfed import Evaluation, Failure, Task, Update
from polypfed.backends.nvflare.payload import (
    reply_from_shareable,
    reply_to_shareable,
    task_from_shareable,
    task_to_shareable,
)
from polypfed.core.errors import MessageError
from polypfed.core.gate import Gate
from polypfed.core.messages import Reply

LAYOUT = [("conv.weight", 4), ("conv.bias", 2), ("bn.mean", 3)]
CONFIG = {"run": "f00", "seed": 7, "reply_bytes": 4096}
TASK = Task(3, "fit", {"model": np.arange(9, dtype=np.float32), "c": np.ones(6, np.float32)}, CONFIG)


def update(**more: Any) -> Update:
    vectors = {"delta": np.linspace(-1, 1, 9, dtype=np.float32), "dc": np.full(6, 0.25, np.float32)}
    return Update("a", 3, {**vectors, **more}, 12, {"loss": 0.5, "steps": 4}, "f00")


def over_the_wire(data: Shareable) -> Shareable:
    numpy_decomposers.register()
    return fobs.loads(fobs.dumps(data))


def back(data: Shareable) -> Reply:
    return reply_from_shareable(over_the_wire(data), "a", TASK, LAYOUT)


def refused(data: Any) -> str:
    reply = reply_from_shareable(data, "a", TASK, LAYOUT)
    assert isinstance(reply, Failure)
    assert (reply.client, reply.round, reply.run) == ("a", 3, "f00")
    return reply.reason


def same(one: Any, other: Any) -> None:
    assert set(one.vectors) == set(other.vectors)
    for name, vector in one.vectors.items():
        assert other.vectors[name].dtype == vector.dtype
        assert other.vectors[name].tobytes() == vector.tobytes()


@pytest.mark.parametrize("layout", [LAYOUT, [], [("one", 9)]])
def test_a_task_comes_back_as_it_was(layout: Any) -> None:
    order = task_from_shareable(over_the_wire(task_to_shareable(TASK, layout, 2.5)))
    assert (order.task.round, order.task.kind, dict(order.task.config), order.deadline) == (3, "fit", CONFIG, 2.5)
    same(TASK, order.task)


@pytest.mark.parametrize("layout", [LAYOUT, []])
def test_an_update_comes_back_as_it_was(layout: Any) -> None:
    sent = update()
    got = reply_from_shareable(over_the_wire(reply_to_shareable(sent, layout)), "a", TASK, layout)
    assert isinstance(got, Update)
    same(sent, got)
    assert (got.weight, dict(got.metrics), got.run, got.client) == (12, {"loss": 0.5, "steps": 4}, "f00", "a")


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=9, max_size=9))
@settings(max_examples=50, deadline=None)
def test_every_bit_of_every_float_survives(values: list[float]) -> None:
    sent = update(delta=np.array(values, np.float32))
    got = back(reply_to_shareable(sent, LAYOUT))
    assert isinstance(got, Update)
    same(sent, got)


def test_evaluations_and_failures_travel_too() -> None:
    for sent in (Evaluation("a", 3, {"map50": 0.5}, 9, "f00"), Failure("a", 3, "data", "no images", "f00")):
        assert repr(back(reply_to_shareable(sent, LAYOUT))) == repr(sent)


def test_filters_see_layers_of_weight_diffs_and_ciphertext_stays_out_of_their_sight() -> None:
    frame = np.frombuffer(bytes(range(256)), np.uint8)
    data = reply_to_shareable(update(sealed=frame), LAYOUT)
    children = from_shareable(data).data
    kinds = {name: child.data_kind for name, child in children.items()}
    assert kinds == {
        "vector:delta": DataKind.WEIGHT_DIFF,
        "vector:dc": DataKind.WEIGHT_DIFF,
        "info": DataKind.APP_DEFINED,
    }
    assert list(children["vector:delta"].data) == ["conv.weight", "conv.bias", "bn.mean"]
    assert list(children["vector:dc"].data) == ["conv.weight", "conv.bias"]
    assert children["vector:delta"].get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND) == 4
    assert not any(isinstance(v, np.ndarray) for c in children.values() for v in c.meta.values())
    got = back(data)
    assert isinstance(got, Update)
    assert got.vectors["sealed"].tobytes() == frame.tobytes()


def filtered(one: Any) -> Update:
    """The update after NVFlare's own filter, as the server reads it."""
    got = back(one.process(reply_to_shareable(update(), LAYOUT), FLContext()))
    assert isinstance(got, Update)
    gate = Gate("f00", 3, frozenset({"a"}), {"delta": 9, "dc": 6}, 100.0)
    return gate.admit(got)


def test_percentile_privacy_clips_deltas_and_control_variates() -> None:
    got = filtered(PercentilePrivacy(percentile=0, gamma=0.01))
    np.testing.assert_allclose(got.vectors["delta"], np.clip(update().vectors["delta"], -0.04, 0.04), rtol=1e-6)
    np.testing.assert_allclose(got.vectors["dc"], 0.04)  # gamma times the four steps


def test_svt_privacy_lets_a_fraction_through() -> None:
    got = filtered(SVTPrivacy(fraction=0.3, replace=False))
    assert np.count_nonzero(got.vectors["delta"]) == 3
    assert np.count_nonzero(got.vectors["dc"]) == 2


def test_a_layer_that_exclude_vars_takes_out_does_not_change() -> None:
    got = filtered(ExcludeVars(exclude_vars="^conv.b"))
    assert got.vectors["delta"].tolist() == [
        *update().vectors["delta"][:4].tolist(),
        0,
        0,
        *update().vectors["delta"][6:],
    ]
    assert got.vectors["dc"].tolist() == [0.25] * 4 + [0, 0]


def test_a_model_whose_layers_a_filter_took_out_is_no_task() -> None:
    data = ExcludeVars(exclude_vars="^conv.b").process(task_to_shareable(TASK, LAYOUT, 1.0), FLContext())
    with pytest.raises(MessageError, match="missing"):
        task_from_shareable(data)


def test_a_vector_that_ends_within_a_layer_travels_whole() -> None:
    sent = update(odd=np.zeros(5, np.float32))
    got = back(reply_to_shareable(sent, LAYOUT))
    assert isinstance(got, Update)
    same(sent, got)


def test_another_dtype_is_left_to_the_gate() -> None:
    got = back(reply_to_shareable(update(delta=np.zeros(9, np.float64)), []))
    assert isinstance(got, Update)
    assert got.vectors["delta"].dtype == np.float64


def tampered(change: Callable[[dict[str, DXO]], None]) -> Shareable:
    data = reply_to_shareable(update(), LAYOUT)
    collection = from_shareable(data)
    change(collection.data)
    return collection.to_shareable()


def layer(value: Any, name: str = "conv.bias") -> Callable[[dict[str, DXO]], None]:
    return lambda children: children["vector:delta"].data.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (layer(np.zeros(3, np.float32)), "shape"),
        (layer(np.zeros((1, 2), np.float32)), "shape"),
        (layer(np.zeros(2, np.float64)), "dtype"),
        (layer(np.zeros(2, np.int8)), "dtype"),
        (layer(np.zeros(2, np.complex64)), "dtype"),
        (layer([0.0, 0.0]), "dtype"),
        (layer("garbage"), "dtype"),
        (layer(np.zeros(2, np.float32), "extra"), "keys"),
        (lambda c: c["vector:delta"].data.pop("conv.bias"), "keys"),
        (lambda c: c.pop("info"), "header"),
        (lambda c: c["info"].data.pop("header"), "header"),
        (lambda c: c["info"].data.__setitem__("header", b"garbage"), "header"),
        (lambda c: c["info"].data.__setitem__("lengths", {"delta": 8}), "shape"),
        (lambda c: c["info"].data.__setitem__("lengths", {"delta": 10**15}), "shape"),
        (lambda c: c["info"].data.__setitem__("lengths", 3), "header"),
        (lambda c: c["info"].data.__setitem__("frames", {"x": 3}), "keys"),
        (lambda c: c.__setitem__("strange", DXO(DataKind.WEIGHTS, data={"a": np.zeros(1)})), "keys"),
        (layer(np.zeros(2000, np.float32)), "size"),
    ],
)
def test_what_is_wrong_with_a_reply_has_a_name(change: Any, reason: str) -> None:
    assert refused(tampered(change)) == reason


@pytest.mark.parametrize(
    "garbage", [None, 3, b"x", {}, Shareable(), DXO(DataKind.WEIGHTS, data={"a": np.zeros(1)}).to_shareable()]
)
def test_garbage_is_a_failure_and_never_an_exception(garbage: Any) -> None:
    assert refused(garbage) in ("header", "engine")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (ReturnCode.EXECUTION_EXCEPTION, "crashed"),
        (ReturnCode.TASK_RESULT_FILTER_ERROR, "filter"),
        (ReturnCode.TASK_UNKNOWN, "policy"),
        (ReturnCode.BAD_TASK_DATA, "engine"),
    ],
)
def test_what_the_engine_reports_is_a_failure(code: str, reason: str) -> None:
    assert refused(make_reply(code)) == reason


def test_a_reply_under_another_name_or_of_another_kind_is_refused() -> None:
    other = Update("b", 3, update().vectors, 12, {}, "f00")
    assert refused(reply_to_shareable(other, LAYOUT)) == "unknown-client"
    assert refused(task_to_shareable(TASK, LAYOUT, 1.0)) == "header"
