"""Messages as Flower's records: nothing is lost, Flower's tools read them, and hostile ones become Failures."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from polypfed.backends.flower.records import (
    CONFIG,
    HEADER,
    METRICS,
    pack_reply,
    pack_task,
    read_array,
    unpack_reply,
    unpack_task,
)
from polypfed.core.errors import MessageError
from polypfed.core.messages import Evaluation, Failure, Task, Update

TASK = Task(3, "fit", {"model": np.arange(4, dtype=np.float32)}, {"run": "r", "seed": 5, "reply_bytes": 5000})
UPDATE = Update("a", 3, {"delta": np.float32([1, -2, 0.5, 3])}, 17, {"loss": 0.25, "images": 4}, "r")


def sent(content: RecordDict) -> RecordDict:
    """As the other end gets it: through Flower's own bytes."""
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

    return recorddict_from_proto(recorddict_to_proto(content))


def test_a_task_arrives_whole() -> None:
    task, site, deadline = unpack_task(sent(pack_task(TASK, "a", 60.0)))
    assert (task.round, task.kind, dict(task.config), site, deadline) == (3, "fit", dict(TASK.config), "a", 60.0)
    assert task.vectors["model"].tobytes() == TASK.vectors["model"].tobytes()
    assert not task.vectors["model"].flags.writeable


@pytest.mark.parametrize(
    "reply", [UPDATE, Evaluation("a", 3, {"map50": 0.5}, 9, "r"), Failure("a", 3, "crashed", "why\nnot", "r")]
)
def test_a_reply_arrives_whole(reply: Any) -> None:
    got = unpack_reply(sent(pack_reply(reply)), "a", TASK)
    assert type(got) is type(reply)
    plain = {"vectors": {}} if isinstance(reply, Update) else {}
    assert str(replace(got, **plain)) == str(replace(reply, **plain))
    if isinstance(got, Update):
        assert {k: v.tobytes() for k, v in got.vectors.items()} == {k: v.tobytes() for k, v in reply.vectors.items()}


def test_flowers_own_tools_read_what_is_sent() -> None:
    """Flower's FedAvg takes exactly one ArrayRecord and one MetricRecord with `num-examples` from a reply."""
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords, aggregate_metricrecords

    other = replace(UPDATE, client="b", vectors={"delta": np.float32([5, 2, 0.5, -1])}, weight=51)
    contents = [sent(pack_reply(u)) for u in (UPDATE, other)]
    mean = aggregate_arrayrecords(contents, "num-examples").to_numpy_ndarrays()
    np.testing.assert_allclose(mean[0], np.float32([4, 1, 0.5, 0]))
    assert aggregate_metricrecords(contents, "num-examples")["loss"] == pytest.approx(0.25)
    assert sent(pack_task(TASK, "a", 1.0))["arrays"]["model"].numpy().tolist() == [0, 1, 2, 3]


@given(
    dtype=st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int32", "int64"]),
    size=st.integers(0, 40),
)
def test_any_vector_is_read_back(dtype: str, size: int) -> None:
    vector = np.arange(size).astype(dtype)
    found = read_array("v", Array(vector))
    assert found.dtype == vector.dtype
    assert found.tobytes() == vector.tobytes()


def npy(array: Any, **settings: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **settings)
    return file.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


GOOD = npy(np.zeros(4, np.float32))
HOSTILE = {
    "terabytes": ("float32", (1 << 42,), header("{'descr': '<f4', 'fortran_order': False, 'shape': (4398046511104,)}")),
    "another shape": ("float32", (5,), GOOD),
    "another dtype": ("int32", (4,), GOOD),
    "cut short": ("float32", (4,), GOOD[:-1]),
    "too long": ("float32", (4,), GOOD + b"x"),
    "objects": ("object", (1,), npy(np.array([{}], object), allow_pickle=True)),
    "objects that say float32": ("float32", (1,), npy(np.array([{}], object), allow_pickle=True)),
    "nothing": ("float32", (4,), b""),
    "noise": ("float32", (4,), b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 900),
    "code": ("float32", (1,), header("__import__('os').system('true')")),
    "negative": ("float32", (-4,), header("{'descr': '<f4', 'fortran_order': False, 'shape': (-4,)}")),
    "strings": ("str96", (1,), npy(np.array(["abc"]))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_array_is_refused(name: str) -> None:
    dtype, shape, data = HOSTILE[name]
    with pytest.raises(MessageError):
        read_array("delta", Array(dtype, shape, "numpy.ndarray", data))
    content = pack_reply(UPDATE)
    content["arrays"] = ArrayRecord({"delta": Array(dtype, shape, "numpy.ndarray", data)})
    reply = unpack_reply(content, "a", TASK)
    assert isinstance(reply, Failure)
    assert (reply.client, reply.round, reply.reason, reply.run) == ("a", 3, "header", "r")


@given(data=st.data())
def test_any_change_of_a_byte_is_a_reply_or_a_failure(data: Any) -> None:
    content = pack_reply(UPDATE)
    array = content["arrays"]["delta"]
    raw = bytearray(array.data)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    content["arrays"] = ArrayRecord({"delta": Array("float32", (4,), "numpy.ndarray", bytes(raw))})
    assert isinstance(unpack_reply(content, "a", TASK), Update | Failure)


def test_what_is_too_large_is_not_parsed() -> None:
    content = pack_reply(replace(UPDATE, vectors={"delta": np.zeros(5000, np.float32)}))
    reply = unpack_reply(content, "a", TASK)
    assert isinstance(reply, Failure)
    assert reply.reason == "size"


def test_a_reply_under_another_name_is_refused() -> None:
    reply = unpack_reply(pack_reply(UPDATE), "b", TASK)
    assert isinstance(reply, Failure)
    assert (reply.client, reply.reason) == ("b", "unknown-client")


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({CONFIG: ConfigRecord({HEADER: "text"})}),
        RecordDict({CONFIG: ConfigRecord({HEADER: b"PFED"})}),
        RecordDict({METRICS: MetricRecord({"num-examples": 3})}),
        pack_task(TASK, "a", 1.0),
    ],
)
def test_what_is_no_reply_is_a_failure(content: RecordDict) -> None:
    reply = unpack_reply(content, "a", TASK)
    assert isinstance(reply, Failure)
    assert reply.reason == "header"
    if HEADER not in content.config_records.get(CONFIG, {}):
        with pytest.raises(MessageError):
            unpack_task(content)


@pytest.mark.parametrize(
    "odd",
    [
        replace(UPDATE, metrics={"loss": "low"}),  # type: ignore[dict-item]
        replace(UPDATE, vectors={"delta": np.array(["a"])}),  # type: ignore[dict-item]
        replace(UPDATE, weight=None),  # type: ignore[arg-type]
        replace(UPDATE, vectors={"delta": np.array([1 + 2j])}),  # type: ignore[dict-item]
    ],
)
def test_a_reply_that_cannot_be_written_becomes_a_failure(odd: Update) -> None:
    reply = unpack_reply(sent(pack_reply(odd)), "a", TASK)
    assert isinstance(reply, Failure)
    assert reply.reason == "header"


def test_the_gate_sees_the_metrics_as_they_came() -> None:
    nan = unpack_reply(sent(pack_reply(replace(UPDATE, metrics={"loss": float("nan")}))), "a", TASK)
    assert isinstance(nan, Update)
    assert np.isnan(nan.metrics["loss"])
