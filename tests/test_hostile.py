"""Hostile updates through the engine: each is refused with its reason, and the model is the honest one, bit for bit."""

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from polypfed import Evaluation, Failure, Federation, History, Task, Update
from polypfed.core.errors import QuorumError
from polypfed.core.gate import MAX_WEIGHT, REASONS, receive
from polypfed.core.messages import HEADER_LIMIT, Reply, encode
from tests.problems import Scripted, absent, bits, scores, sites

ROUNDS, BAD = 3, "site-01"
SIZE = 3


def delta(*values: float) -> dict[str, Any]:
    return {"vectors": {"delta": np.array(values, np.float32)}}


def vectors(**named: Any) -> dict[str, Any]:
    return {"vectors": named}


good = np.ones(SIZE, np.float32)

CHANGES: list[tuple[str, str, dict[str, Any]]] = [
    ("too short", "shape", delta(1, 1)),
    ("too long", "shape", delta(1, 1, 1, 1)),
    ("empty", "shape", delta()),
    ("broadcastable (1,)", "shape", delta(1)),
    ("broadcastable (1, 3)", "shape", vectors(delta=good.reshape(1, 3))),
    ("strided", "shape", vectors(delta=np.ones(6, np.float32)[::2])),
    ("float64", "dtype", vectors(delta=good.astype(np.float64))),
    ("float16", "dtype", vectors(delta=good.astype(np.float16))),
    ("int8", "dtype", vectors(delta=good.astype(np.int8))),
    ("complex", "dtype", vectors(delta=good.astype(np.complex64))),
    ("a list", "dtype", vectors(delta=[1.0, 1.0, 1.0])),
    ("no vector", "keys", vectors()),
    ("other name", "keys", vectors(model=good)),
    ("one name more", "keys", vectors(delta=good, dc=good)),
    ("no mapping", "keys", {"vectors": None}),
    ("NaN first", "non-finite", delta(math.nan, 1, 1)),
    ("NaN last", "non-finite", delta(1, 1, math.nan)),
    ("infinity", "non-finite", delta(1, math.inf, 1)),
    ("minus infinity", "non-finite", delta(-math.inf, 1, 1)),
    ("huge", "norm", delta(1e9, 0, 0)),
    ("overflowing square", "norm", delta(1e30, 1e30, -1e30)),
    ("largest float32", "norm", delta(3.4e38, 3.4e38, 3.4e38)),
    ("negative weight", "weight", {"weight": -399}),
    ("true weight", "weight", {"weight": True}),
    ("float weight", "weight", {"weight": 20.0}),
    ("NaN weight", "weight", {"weight": math.nan}),
    ("absurd weight", "weight", {"weight": 10**18}),
    ("weight above the cap", "weight", {"weight": MAX_WEIGHT + 1}),
    ("NaN metric", "metrics", {"metrics": {"loss": math.nan}}),
    ("metric beyond floats", "metrics", {"metrics": {"loss": 10**400}}),
    ("metric of markup", "metrics", {"metrics": {"<script>": 1.0}}),
    ("metrics of another type", "metrics", {"metrics": [1.0]}),
    ("old round", "stale-round", {"round": 0}),
    ("future round", "stale-round", {"round": ROUNDS + 9}),
    ("float round", "stale-round", {"round": 1.0}),
    ("another run", "wrong-run", {"run": "0123456789abcdef"}),
    ("no run", "wrong-run", {"run": ""}),
    ("unknown client", "unknown-client", {"client": "nobody"}),
    ("client of another type", "unknown-client", {"client": None}),
]

Script = Callable[[str, Task, Reply], Iterator[Reply]]


def federated(script: Script, **settings: Any) -> History:
    return Federation(clients=sites(), **settings).run(ROUNDS, Scripted(script))


def honest_only(**settings: Any) -> History:
    """BAD was asked and did not answer."""

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield absent(name, task) if name == BAD else reply

    return federated(script, **settings)


def everyone(**settings: Any) -> History:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield reply

    return federated(script, **settings)


def reasons(history: History) -> set[str]:
    return {f.reason for f in history.failures}


by_label = pytest.mark.parametrize(("reason", "change"), [pytest.param(r, c, id=label) for label, r, c in CHANGES])


@by_label
def test_a_hostile_update_in_place_of_its_own(reason: str, change: dict[str, Any]) -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield replace(reply, **change) if name == BAD else reply

    history = federated(script)
    assert reasons(history) == {reason}
    assert len(history.failures) == ROUNDS
    assert bits(history) == bits(honest_only())
    assert json.dumps(history.rows, allow_nan=False)


@by_label
def test_forged_in_the_name_of_an_honest_client_before_its_own_arrives(reason: str, change: dict[str, Any]) -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        if name == BAD:
            yield replace(reply, **change)
        yield reply

    history = federated(script, evaluate="matrix", quorum=4)
    assert reasons(history) == {reason}
    assert bits(history) == bits(everyone())
    clean = everyone(evaluate="matrix")
    assert [s for s in scores(history) if s[2] != "failed"] == [s for s in scores(clean) if s[2] != "failed"]


def test_a_bad_value_in_the_last_vector_leaves_nothing_of_the_first() -> None:
    """Refused whole: nothing of an update is added before all of it is known to be good."""

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        if name == BAD and isinstance(reply, Update):
            values = reply.vectors["delta"].copy()
            values[-1] = np.nan
            yield replace(reply, vectors={"delta": values})
        else:
            yield reply

    assert bits(federated(script)) == bits(honest_only())


def test_the_same_update_twice_counts_once() -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield reply
        if name == BAD:
            yield reply

    history = federated(script)
    assert reasons(history) == {"duplicate"}
    assert bits(history) == bits(everyone())


def test_an_update_of_last_round_again() -> None:
    kept: list[Reply] = []

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        if name == BAD:
            yield from kept
            kept[:] = [reply]
        yield reply

    history = federated(script)
    assert reasons(history) == {"stale-round"}
    assert bits(history) == bits(everyone())


def test_an_update_after_the_client_was_given_up_is_late_and_does_not_count() -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        if name == BAD:
            yield absent(name, task)
        yield reply

    history = federated(script, evaluate="off")
    assert reasons(history) == {"lost", "late"}
    assert bits(history) == bits(honest_only())
    assert history.values("accepted") == {1: 3, 2: 3, 3: 3}


def test_a_failure_after_its_update_takes_nothing_back() -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield reply
        yield absent(name, task)
        yield absent("nobody", task)

    history = federated(script, quorum=4)
    assert bits(history) == bits(everyone())


def test_an_evaluation_in_place_of_an_update() -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield Evaluation(BAD, task.round, {}, 1, task.run) if name == BAD else reply

    history = federated(script)
    assert reasons(history) == {"header"}
    assert bits(history) == bits(honest_only())


def test_a_forged_update_under_a_site_that_was_not_asked() -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        for other in sites():
            yield replace(reply, client=other.name) if other.name != name else reply

    history = Federation(clients=sites(), per_round=1).run(ROUNDS, Scripted(script))
    assert reasons(history) == {"unknown-client"}
    assert len(history.failures) == 3 * ROUNDS
    assert bits(history) == bits(
        Federation(clients=sites(), per_round=1).run(ROUNDS, Scripted(lambda n, t, r: iter([r])))
    )


def test_a_bound_of_the_users_own_holds() -> None:
    assert not everyone(max_norm=10.0).failures
    with pytest.raises(QuorumError):
        everyone(max_norm=1e-6)


def test_a_clever_update_within_all_bounds_is_let_through() -> None:
    """The gate is not a robust rule, and does not pretend to be one."""

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        if name == BAD and isinstance(reply, Update):
            yield replace(reply, vectors={"delta": -5 * reply.vectors["delta"]})
        else:
            yield reply

    history = federated(script)
    assert not history.failures
    assert bits(history) not in (bits(everyone()), bits(honest_only()))


# ---------------------------------------------------------------------------------------------------------- bytes


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack_from("<I", data, 5)[0]
    return json.loads(data[9 : 9 + length]), data[9 + length :]


def framed(header: Any, body: bytes) -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return b"PFED\x01" + struct.pack("<I", len(head)) + head + body


def changed(data: bytes, **fields: Any) -> bytes:
    header, body = header_of(data)
    return framed(header | fields, body)


def text(data: bytes, old: bytes, new: bytes) -> bytes:
    header, body = header_of(data)
    head = json.dumps(header).encode()
    assert old in head
    return framed(head.replace(old, new, 1), body)


def other_body(data: bytes, arrays: dict[str, Any]) -> bytes:
    return framed(header_of(data)[0], safetensors.numpy.save(arrays))


BYTES: list[tuple[str, str, Callable[[bytes], bytes]]] = [
    ("nothing", "header", lambda d: b""),
    ("one byte", "header", lambda d: d[:1]),
    ("magic cut", "header", lambda d: d[:4]),
    ("length cut", "header", lambda d: d[:7]),
    ("header cut", "header", lambda d: d[:40]),
    ("body missing", "header", lambda d: framed(header_of(d)[0], b"")),
    ("body cut", "header", lambda d: d[:-1]),
    ("half", "header", lambda d: d[: len(d) // 2]),
    ("one byte more", "header", lambda d: d + b"\0"),
    ("twice", "header", lambda d: d + d),
    ("oversized", "size", lambda d: d + bytes(HEADER_LIMIT + (1 << 17))),
    ("oversized rubbish", "size", lambda d: b"\xff" * (4 << 20)),
    ("rubbish", "header", lambda d: b"\xff" * 500),
    (
        "a pickle",
        "header",
        lambda d: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93.",
    ),
    ("header longer than it is", "header", lambda d: d[:5] + struct.pack("<I", 2**31) + d[9:]),
    ("not JSON", "header", lambda d: framed(b"{'type': 'Update'}", header_of(d)[1])),
    ("no object", "header", lambda d: framed(b"[]", header_of(d)[1])),
    ("deep JSON", "header", lambda d: framed(b"[" * 200_000, header_of(d)[1])),
    ("key twice", "header", lambda d: text(d, b'"weight"', b'"weight": 1, "weight"')),
    ("metric twice", "header", lambda d: text(d, b'"metrics": {', b'"metrics": {"images": 1, ')),
    ("NaN", "header", lambda d: text(d, b'"metrics": {', b'"metrics": {"loss": NaN, ')),
    ("Infinity", "header", lambda d: text(d, b'"metrics": {', b'"metrics": {"loss": Infinity, ')),
    ("1e999", "header", lambda d: text(d, b'"metrics": {', b'"metrics": {"loss": 1e999, ')),
    ("UTF-16", "header", lambda d: framed(json.dumps(header_of(d)[0]).encode("utf-16"), header_of(d)[1])),
    ("a field more", "header", lambda d: changed(d, role="admin")),
    ("vectors in the header", "header", lambda d: changed(d, vectors={"delta": [0, 0, 0]})),
    ("unknown type", "header", lambda d: changed(d, type="Object")),
    ("a task", "header", lambda d: encode(Task(1, "fit", {"delta": good}))),
    ("true weight", "header", lambda d: changed(d, weight=True)),
    ("float weight", "header", lambda d: changed(d, weight=20.0)),
    ("text weight", "header", lambda d: changed(d, weight="20")),
    ("float round", "header", lambda d: changed(d, round=1.0)),
    ("client of another type", "header", lambda d: changed(d, client=7)),
    ("another's name", "unknown-client", lambda d: changed(d, client="site-00")),
    ("negative weight", "weight", lambda d: changed(d, weight=-1)),
    ("absurd weight", "weight", lambda d: changed(d, weight=10**300)),
    ("old round", "stale-round", lambda d: changed(d, round=-1)),
    ("another run", "wrong-run", lambda d: changed(d, run="x")),
    ("metric of markup", "metrics", lambda d: changed(d, metrics={"<b>": 1})),
    ("other name", "keys", lambda d: other_body(d, {"model": good})),
    ("no vector", "keys", lambda d: other_body(d, {})),
    ("one vector more", "keys", lambda d: other_body(d, {"delta": good, "x": good})),
    ("float64", "dtype", lambda d: other_body(d, {"delta": good.astype(float)})),
    ("int8", "dtype", lambda d: other_body(d, {"delta": good.astype(np.int8)})),
    ("too long", "shape", lambda d: other_body(d, {"delta": np.ones(4, np.float32)})),
    ("(1, 3)", "shape", lambda d: other_body(d, {"delta": good.reshape(1, 3)})),
    ("NaN value", "non-finite", lambda d: other_body(d, {"delta": good * np.float32(math.nan)})),
    ("huge value", "norm", lambda d: other_body(d, {"delta": good * np.float32(1e30)})),
]


@pytest.mark.parametrize(("reason", "change"), [pytest.param(r, c, id=label) for label, r, c in BYTES])
def test_hostile_bytes(reason: str, change: Callable[[bytes], bytes]) -> None:
    """As a remote backend reads them: in place of the client's own, and before its own arrive."""

    def replaced(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        data = encode(reply)
        yield receive(change(data) if name == BAD else data, name, task)

    history = federated(replaced)
    assert reasons(history) == {reason}
    assert bits(history) == bits(honest_only())


def test_honest_bytes_give_the_bits_of_honest_objects() -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield receive(encode(reply), name, task)

    assert bits(federated(script)) == bits(everyone())


def test_every_reason_was_seen() -> None:
    seen = (
        {r for _, r, _ in CHANGES} | {r for _, r, _ in BYTES} | {"duplicate", "late", "signature", "wrong-base"}
    )  # the last two: tests/federation/test_signed.py
    assert seen == set(REASONS)


# ----------------------------------------------------------------------------------------------------- evaluations


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"gradient_norm": math.nan}},
        {"metrics": {"gradient_norm": 10**400}},
        {"metrics": {"gradient_norm": 1e300}},
        {"metrics": None},
        {"weight": -1},
        {"weight": 10**400},
        {"weight": 1.5},
        {"round": 99},
        {"run": ""},
        {"client": "nobody"},
        {"client": "site-00"},
    ],
)
def test_a_hostile_evaluation_spoils_no_score(change: dict[str, Any]) -> None:
    class Judging(Scripted):
        def exchange(self, tasks: Any, deadline: float) -> Iterator[Reply]:
            for reply in super().exchange(tasks, deadline):
                hostile = isinstance(reply, Evaluation) and reply.client == BAD
                yield replace(reply, **change) if hostile else reply

    class Silent(Scripted):
        def exchange(self, tasks: Any, deadline: float) -> Iterator[Reply]:
            for reply in super().exchange(tasks, deadline):
                missing = isinstance(reply, Evaluation) and reply.client == BAD
                yield Failure(BAD, reply.round, "lost", "", "") if missing else reply

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield reply

    judged = Federation(clients=sites()).run(ROUNDS, Judging(script))
    silent = Federation(clients=sites()).run(ROUNDS, Silent(script))
    assert scores(judged) == scores(silent)
    assert len(judged.failures) == ROUNDS + 1
    assert reasons(judged) <= {"metrics", "weight", "stale-round", "unknown-client"}
    assert json.dumps(judged.rows, allow_nan=False)


def test_an_update_in_place_of_an_evaluation() -> None:
    class Confused(Scripted):
        def exchange(self, tasks: Any, deadline: float) -> Iterator[Reply]:
            for reply in super().exchange(tasks, deadline):
                confused = isinstance(reply, Evaluation) and reply.client == BAD
                yield Update(BAD, reply.round, {"delta": good}, 1, {}, reply.run) if confused else reply

    history = Federation(clients=sites()).run(1, Confused(lambda n, t, r: iter([r])))
    assert [(f.client, f.reason) for f in history.failures] == [(BAD, "header")] * 2
