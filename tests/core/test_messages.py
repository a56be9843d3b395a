import json
import struct
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.core.errors import MessageError
from polypfed.core.messages import (
    HEADER_LIMIT,
    Evaluation,
    Failure,
    Message,
    Task,
    Update,
    decode,
    encode,
    one_line,
    sound,
    stamp,
)

DELTA = np.array([1.5, -2.0, 3.25], np.float32)
EXAMPLES: list[Message] = [
    Task(3, "fit", {"model": DELTA, "c": DELTA[:2]}, {"seed": 2**62, "strategy": {"name": "fedavg", "eta": 0.5}}),
    Task(0, "evaluate", {"model": DELTA}),
    Update("site-a", 3, {"delta": DELTA, "dc": -DELTA}, 17, {"loss": 0.25, "images": 17}, "run-1"),
    Update("site-a", 3, {"delta": np.zeros(0, np.float32)}, 0),
    Evaluation("site-b", 3, {"map50": 0.5}, 9, "run-1"),
    Failure("site-c", 3, "crashed", "ValueError: ü", "run-1"),
]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


def framed(header: Any, body: bytes = b"") -> bytes:
    """A message with a header of our choice, laid out by hand."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return b"PFED\x01" + struct.pack("<I", len(head)) + head + body


FAILURE = {"type": "Failure", "client": "a", "round": 1, "reason": "r", "detail": "", "run": ""}
UPDATE = {"type": "Update", "client": "a", "round": 1, "weight": 1, "metrics": {}, "run": ""}
BODY = safetensors.numpy.save({"delta": DELTA})


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_bytes_give_the_message_back(message: Message) -> None:
    again = decode(encode(message))
    assert type(again) is type(message)
    for f in fields(message):
        assert same(getattr(message, f.name), getattr(again, f.name)), f.name


def test_the_layout_of_the_bytes_is_the_documented_one() -> None:
    update = decode(framed(UPDATE, BODY))
    assert isinstance(update, Update)
    assert (update.client, update.round, update.weight) == ("a", 1, 1)
    assert same(update.vectors["delta"], DELTA)
    assert encode(Failure("a", 1, "r")).startswith(b"PFED\x01")


VECTORS = {
    "delta": DELTA,
    "b": np.arange(3, dtype=np.float64),
    "a": np.zeros(0, np.float32),
    "q": np.array([[-3, 5]], np.int8),
    "h": np.ones((2, 1), np.float16),
    "": np.array(7, np.int64),
}


def body_of(message: bytes) -> bytes:
    return message[9 + struct.unpack_from("<I", message, 5)[0] :]


def test_the_body_is_a_safetensors_file_to_the_byte() -> None:
    body = body_of(encode(Update("a", 1, VECTORS, 1)))
    assert same(safetensors.numpy.load(body), VECTORS)
    for some in ({}, {"delta": DELTA}, {"c": DELTA, "delta": DELTA}):
        assert body_of(encode(Update("a", 1, some, 1))) == safetensors.numpy.save(some)


def test_vectors_lie_in_the_bytes_of_the_message_and_nowhere_else() -> None:
    for name in ("a", "ab", "abc"):  # whatever the length of the header
        data = encode(Update(name, 1, VECTORS, 1))
        update = decode(data)
        assert isinstance(update, Update)
        assert same(dict(update.vectors), VECTORS)
        assert all(v.flags.aligned for v in update.vectors.values())
        assert np.shares_memory(update.vectors["delta"], np.frombuffer(data, np.uint8))


def test_a_buffer_that_will_be_used_again_is_copied() -> None:
    buffer = bytearray(encode(Update("a", 1, VECTORS, 1)))
    update = decode(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert isinstance(update, Update)
    assert same(dict(update.vectors), VECTORS)


def test_vectors_of_other_senders_may_be_unaligned() -> None:
    for blanks in range(8):
        header = json.dumps(UPDATE).encode() + b" " * blanks
        update = decode(b"PFED\x01" + struct.pack("<I", len(header)) + header + BODY)
        assert isinstance(update, Update)
        assert update.vectors["delta"].flags.aligned
        assert same(update.vectors["delta"], DELTA)


def test_what_is_read_is_what_the_library_reads() -> None:
    """Whatever body passes has the same arrays by safetensors; with mutations in its table."""
    draw, original, survived = np.random.default_rng(21), body_of(encode(Update("a", 1, VECTORS, 1))), 0
    for _ in range(3000):
        body = bytearray(original)
        for _ in range(draw.integers(1, 3)):
            body[int(draw.integers(8, len(body)))] = b'0123456789,[]{}:FIU"abd '[draw.integers(24)]
        try:
            update = decode(framed(UPDATE, bytes(body)))
        except MessageError:
            continue
        assert isinstance(update, Update)
        wanted = safetensors.numpy.load(bytes(body))
        assert {k: (v.dtype, v.shape, v.tobytes()) for k, v in wanted.items()} == {
            k: (v.dtype, v.shape, v.tobytes()) for k, v in update.vectors.items()
        }
        survived += 1
    assert 100 < survived < 2900


def test_decoded_vectors_cannot_be_written() -> None:
    task = decode(encode(EXAMPLES[0]))
    assert isinstance(task, Task)
    assert not any(v.flags.writeable for v in task.vectors.values())


def test_nested_mappings_in_a_config_become_objects() -> None:
    task = decode(encode(Task(1, "fit", {}, MappingProxyType({"strategy": MappingProxyType({"name": "x"})}))))
    assert isinstance(task, Task)
    assert task.config == {"strategy": {"name": "x"}}


def test_numpy_numbers_in_metrics_become_plain() -> None:
    update = decode(encode(Update("a", 1, {"delta": DELTA}, 1, {"loss": np.float32(0.5), "n": np.int64(3)})))  # type: ignore[dict-item]
    assert isinstance(update, Update)
    assert same(dict(update.metrics), {"loss": 0.5, "n": 3})


def test_strided_vectors_travel_as_they_read() -> None:
    update = decode(encode(Update("a", 1, {"delta": np.arange(10, dtype=np.float32)[::-2]}, 1)))
    assert isinstance(update, Update)
    assert update.vectors["delta"].tolist() == [9, 7, 5, 3, 1]


def test_a_task_reads_its_seed_and_run_from_its_config() -> None:
    assert (Task(1, "fit", {}).seed, Task(1, "fit", {}).run) == (0, "")
    assert (Task(1, "fit", {}, {"seed": 4, "run": "r"}).seed, Task(1, "fit", {}, {"run": "r"}).run) == (4, "r")
    assert stamp(Failure("a", 1, "x"), "r9").run == "r9"


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (Update("a", 1, {"delta": DELTA}, 1, {"loss": float("nan")}), "JSON"),
        (Update("a", 1, {"delta": DELTA}, 1, {"loss": float("inf")}), "JSON"),
        (Task(1, "fit", {}, {"x": object()}), "JSON"),
        (Failure("a", 1, "r", "x" * (HEADER_LIMIT + 1)), "header of"),
        (Update("a", 1, {"delta": np.array(["text"])}, 1), "no array of numbers"),  # type: ignore[dict-item]
        (Update("a", 1, {"delta": np.array([None])}, 1), "no array of numbers"),  # type: ignore[dict-item]
    ],
)
def test_what_cannot_be_written_says_so(message: Message, problem: str) -> None:
    with pytest.raises(MessageError, match=problem):
        encode(message)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_every_truncation_is_refused(message: Message) -> None:
    data = encode(message)
    for length in range(len(data)):
        with pytest.raises(MessageError):
            decode(data[:length])


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_trailing_bytes_are_refused(message: Message) -> None:
    with pytest.raises(MessageError):
        decode(encode(message) + b"\0")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"not json", "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"", "not JSON"),
        (b'{"type":"Failure","type":"Failure"}', "occurs twice"),
        (b'{"type":"Update","metrics":{"a":1,"a":2}}', "occurs twice"),
        (json.dumps(UPDATE).replace('"metrics": {}', '"metrics": {"loss": NaN}').encode(), "not a finite number"),
        (json.dumps(UPDATE).replace('"metrics": {}', '"metrics": {"loss": -Infinity}').encode(), "not a finite number"),
        (json.dumps(UPDATE).replace('"metrics": {}', '"metrics": {"loss": 1e999}').encode(), "not a finite number"),
        (b'{"a":' * 100_000, "not JSON"),
        (json.dumps(FAILURE).encode("utf-16"), "not JSON"),
        (json.dumps(FAILURE).encode("utf-8-sig"), "not JSON"),
        (json.dumps(FAILURE).encode().replace(b'"a"', b'"\xff"'), "not JSON"),
        (b'{"round":' + b"9" * 5000 + b"}", "not JSON"),
        (UPDATE | {"type": "Object"}, "unknown type"),
        (UPDATE | {"type": ["Update"]}, "unknown type"),
        ({}, "unknown type"),
        (UPDATE | {"extra": 1}, "extra"),
        (UPDATE | {"vectors": {}}, "vectors"),
        ({k: v for k, v in UPDATE.items() if k != "run"}, "run"),
        (UPDATE | {"round": True}, "not an integer"),
        (UPDATE | {"round": 1.0}, "not an integer"),
        (UPDATE | {"weight": "1"}, "not an integer"),
        (UPDATE | {"weight": None}, "not an integer"),
        (UPDATE | {"client": 3}, "not a string"),
        (UPDATE | {"run": None}, "not a string"),
        (UPDATE | {"metrics": []}, "not an object"),
        ({"type": "Task", "round": 1, "kind": "delete", "config": {}}, "not one of"),
        ({"type": "Task", "round": 1, "kind": "fit", "config": 1}, "not an object"),
    ],
)
def test_hostile_headers_are_refused(header: Any, problem: str) -> None:
    with pytest.raises(MessageError, match=problem) as caught:
        decode(framed(header, BODY))
    assert "\n" not in str(caught.value)


def test_a_message_without_vectors_has_no_body() -> None:
    assert decode(framed(FAILURE)) == Failure("a", 1, "r")
    with pytest.raises(MessageError, match="follow the header"):
        decode(framed(FAILURE, BODY))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PFED",
        b"PFED\x02" + encode(EXAMPLES[0])[5:],
        b"\x80\x04" + b"." * 50,
        b"PFED\x01" + struct.pack("<I", HEADER_LIMIT + 1) + b" " * (HEADER_LIMIT + 1),
        b"PFED\x01" + struct.pack("<I", 2**32 - 1),
    ],
)
def test_a_wrong_frame_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data)


def tensors(**header: Any) -> bytes:
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0" * 8,
        tensors(delta={"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}),
        tensors(delta={"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}) + bytes(12),
        tensors(delta={"dtype": "F32", "shape": [2**62], "data_offsets": [0, 12]}) + bytes(12),
        tensors(delta={"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}, x={"dtype": "F32"}),
        tensors(delta={"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}) + bytes(4),
        tensors(delta={"dtype": "OBJ", "shape": [2], "data_offsets": [0, 4]}) + bytes(4),
        tensors(
            a={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            b={"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
        )
        + bytes(6),
        struct.pack("<Q", 2**63) + b"{}",
        *(
            tensors(delta={"dtype": "F32", "shape": shape, "data_offsets": [0, 0]})  # empty, yet no array can have it
            for shape in ([0, 2**62, 2**62], [2**62, 0], [0, 2**64 - 1], [0] * 70)
        ),
    ],
)
def test_hostile_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(MessageError):
        decode(framed(UPDATE, body))


def test_the_limit_holds_before_anything_is_parsed() -> None:
    with pytest.raises(MessageError, match="more than the 10 allowed"):
        decode(b"\xff" * 11, limit=10)
    data = encode(EXAMPLES[0])
    assert decode(data, limit=len(data))


def decoded_or_refused(data: bytes) -> bool:
    """True if `data` is a message; what comes out then has the types it promises."""
    try:
        message = decode(data)
    except MessageError as error:
        assert len(str(error)) < 10_000  # noqa: PT017 - most mutations are refused, some are messages still
        return False
    assert type(message) in (Task, Update, Evaluation, Failure)
    assert type(message.round) is int
    if isinstance(message, Update | Evaluation):
        assert type(message.weight) is int
        assert type(message.client) is str
        assert isinstance(message.metrics, dict)
    if isinstance(message, Task | Update):
        assert all(isinstance(v, np.ndarray) for v in message.vectors.values())
    return True


def test_twenty_thousand_mutations_give_a_message_or_a_message_error() -> None:
    draw = np.random.default_rng(20)
    originals = [encode(m) for m in EXAMPLES]
    survived = 0
    for _ in range(20_000):
        data = bytearray(originals[draw.integers(len(originals))])
        for _ in range(draw.integers(1, 4)):
            place = int(draw.integers(len(data)))
            match draw.integers(5):
                case 0:
                    data[place] = draw.integers(256)
                case 1:
                    data[place] ^= 1 << int(draw.integers(8))
                case 2:
                    del data[place : place + int(draw.integers(1, 9))]
                case 3:
                    data[place:place] = draw.bytes(int(draw.integers(1, 9)))
                case _:
                    other = originals[draw.integers(len(originals))]
                    data[place:] = other[place:]
            data = data or bytearray(b"P")
        survived += decoded_or_refused(bytes(data))
    assert 100 < survived < 15_000  # both outcomes were seen


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_arbitrary_headers_and_bodies(header: bytes, body: bytes) -> None:
    decoded_or_refused(framed(header, body))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([UPDATE, FAILURE, {"type": "Task", "round": 1, "kind": "fit", "config": {}}]),
    st.dictionaries(
        st.sampled_from(["type", "client", "round", "weight", "metrics", "run", "kind", "config", "x"]), JSON
    ),
    st.sampled_from([BODY, b""]),
)
def test_well_framed_messages_with_any_json_in_their_fields(
    base: dict[str, Any], change: dict[str, Any], body: bytes
) -> None:
    decoded_or_refused(framed(base | change, body))


@pytest.mark.parametrize(
    ("metrics", "good"),
    [
        ({}, True),
        ({"map50@site-1": 0.5, "baseline/local-a/map50": 1, "loss": -1e30}, True),
        (MappingProxyType({"a": 0.0}), True),
        ({"a": True}, False),
        ({"a": float("nan")}, False),
        ({"a": float("inf")}, False),
        ({"a": 1e101}, False),
        ({"a": 10**400}, False),
        ({"a": "1"}, False),
        ({"a": None}, False),
        ({"": 1.0}, False),
        ({"<b>": 1.0}, False),
        ({"a\n": 1.0}, False),
        ({"é": 1.0}, False),
        ({"a" * 201: 1.0}, False),
        ({3: 1.0}, False),
        ({f"m{i}": 0.0 for i in range(10_001)}, False),
        (None, False),
        ([("a", 1.0)], False),
    ],
)
def test_sound_metrics(metrics: Any, good: bool) -> None:
    assert sound(metrics) is good


def test_one_line_joins_and_cuts() -> None:
    assert one_line(" a\n b\t\rc ") == "a b c"
    assert one_line("x" * 600) == "x" * 497 + "..."
    assert one_line("abcdef", 5) == "ab..."
