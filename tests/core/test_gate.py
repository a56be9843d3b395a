import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from polypfed.core.errors import Refused
from polypfed.core.gate import (
    MAX_WEIGHT,
    REASONS,
    Gate,
    admit_evaluation,
    default_max_norm,
    max_bytes,
    norm_of,
    receive,
)
from polypfed.core.messages import Evaluation, Failure, Task, Update, encode

DELTA = np.array([3.0, 4.0], np.float32)
GOOD = Update("a", 5, {"delta": DELTA}, 10, {"loss": 0.5}, "run", base="m", signature="good")


def signed(update: Update) -> None:
    """Real signatures: tests/federation/test_signed.py."""
    if update.signature != "good":
        raise Refused("signature", "is not signed", where=update.client)


def gate() -> Gate:
    return Gate("run", 5, frozenset({"a", "b"}), {"delta": 2}, max_norm=100.0, verify=signed, base="m")


def vectors(**named: Any) -> dict[str, Any]:
    return {"vectors": named}


HOSTILE: list[tuple[str, dict[str, Any]]] = [
    ("signature", {"signature": ""}),
    ("signature", {"signature": "forged"}),
    ("wrong-base", {"base": ""}),
    ("wrong-base", {"base": "other"}),
    ("unknown-client", {"client": "stranger"}),
    ("unknown-client", {"client": "A"}),
    ("unknown-client", {"client": None}),
    ("unknown-client", {"client": ["a"]}),
    ("wrong-run", {"run": ""}),
    ("wrong-run", {"run": "run2"}),
    ("wrong-run", {"run": None}),
    ("stale-round", {"round": 4}),
    ("stale-round", {"round": 6}),
    ("stale-round", {"round": 5.0}),
    ("stale-round", {"round": "5"}),
    ("weight", {"weight": -1}),
    ("weight", {"weight": -399}),
    ("weight", {"weight": MAX_WEIGHT + 1}),
    ("weight", {"weight": 10**18}),
    ("weight", {"weight": True}),
    ("weight", {"weight": 10.0}),
    ("weight", {"weight": math.nan}),
    ("weight", {"weight": "10"}),
    ("weight", {"weight": None}),
    ("metrics", {"metrics": {"loss": math.nan}}),
    ("metrics", {"metrics": {"loss": 10**400}}),
    ("metrics", {"metrics": {"loss": True}}),
    ("metrics", {"metrics": None}),
    ("metrics", {"metrics": {3: 1.0}}),
    ("keys", vectors()),
    ("keys", vectors(model=DELTA)),
    ("keys", vectors(delta=DELTA, extra=DELTA)),
    ("keys", {"vectors": None}),
    ("keys", {"vectors": [DELTA]}),
    ("keys", {"vectors": {"delta": DELTA, 3: DELTA}}),
    ("dtype", vectors(delta=DELTA.astype(np.float64))),
    ("dtype", vectors(delta=DELTA.astype(np.float16))),
    ("dtype", vectors(delta=DELTA.astype(np.int8))),
    ("dtype", vectors(delta=DELTA.astype(">f4"))),
    ("dtype", vectors(delta=np.array([3, 4], np.complex64))),
    ("dtype", vectors(delta=np.array([3.0, 4.0], object))),
    ("dtype", vectors(delta=[3.0, 4.0])),
    ("dtype", vectors(delta=None)),
    ("shape", vectors(delta=np.zeros(3, np.float32))),
    ("shape", vectors(delta=np.zeros(1, np.float32))),
    ("shape", vectors(delta=np.zeros(0, np.float32))),
    ("shape", vectors(delta=np.zeros((1, 2), np.float32))),
    ("shape", vectors(delta=np.zeros((2, 1), np.float32))),
    ("shape", vectors(delta=np.array(3.0, np.float32))),
    ("shape", vectors(delta=np.zeros(4, np.float32)[::2])),
    ("non-finite", vectors(delta=np.array([math.nan, 0], np.float32))),
    ("non-finite", vectors(delta=np.array([0, math.inf], np.float32))),
    ("non-finite", vectors(delta=np.array([-math.inf, math.inf], np.float32))),
    ("norm", vectors(delta=np.array([100.1, 0], np.float32))),
    ("norm", vectors(delta=np.array([1e30, 1e30], np.float32))),
    ("norm", vectors(delta=np.array([3e38, -3e38], np.float32))),
]


@pytest.mark.parametrize(("reason", "change"), HOSTILE, ids=lambda v: v if isinstance(v, str) else str(v)[:40])
def test_each_hostile_update_is_refused_with_its_reason(reason: str, change: dict[str, Any]) -> None:
    door = gate()
    with pytest.raises(Refused) as caught:
        door.admit(replace(GOOD, **change))
    assert caught.value.reason == reason
    assert not door.accepted
    assert door.admit(GOOD) is GOOD  # and its namesake is not held to account for it


def test_all_reasons_of_admit_are_covered_and_listed() -> None:
    assert {reason for reason, _ in HOSTILE} | {"size", "header", "late", "duplicate"} == set(REASONS)


def test_a_good_update_passes_as_it_is_and_only_once() -> None:
    door = gate()
    assert door.admit(GOOD) is GOOD
    with pytest.raises(Refused) as caught:
        door.admit(GOOD)
    assert caught.value.reason == "duplicate"
    assert door.admit(replace(GOOD, client="b"))


def test_the_bounds_themselves_pass() -> None:
    door = gate()
    door.admit(replace(GOOD, weight=0, vectors={"delta": np.array([100, 0], np.float32)}))
    door.admit(replace(GOOD, client="b", weight=MAX_WEIGHT))


def test_who_was_given_up_comes_too_late() -> None:
    door = gate()
    door.give_up("a")
    with pytest.raises(Refused) as caught:
        door.admit(GOOD)
    assert caught.value.reason == "late"
    door.admit(replace(GOOD, client="b"))
    door.give_up("b")
    assert door.accepted == {"b"}


def test_the_first_failing_check_gives_the_reason() -> None:
    order = [r for r in REASONS if r not in ("size", "header", "late", "duplicate")]
    wrong: dict[str, Any] = {}
    for reason in reversed(order):
        change = next(c for r, c in HOSTILE if r == reason)
        wrong = wrong | change if reason not in ("dtype", "shape", "norm") else change
        with pytest.raises(Refused) as caught:
            gate().admit(replace(GOOD, **wrong))
        assert caught.value.reason == reason


def test_one_bad_vector_among_several_refuses_the_whole() -> None:
    door = Gate("run", 5, frozenset({"a"}), {"delta": 2, "dc": 2}, max_norm=100.0)
    bad = {"delta": DELTA, "dc": np.array([0, math.nan], np.float32)}
    with pytest.raises(Refused, match="dc holds NaN"):
        door.admit(replace(GOOD, vectors=bad))


def test_norms_against_exact_arithmetic() -> None:
    draw = np.random.default_rng(0)
    for scale in (1e-30, 1e-20, 1.0, 1e15, 1e25, 3e37):
        vector = (draw.standard_normal(1000) * scale).astype(np.float32)
        exact = math.sqrt(math.fsum(float(v) ** 2 for v in vector))
        assert norm_of(vector) == pytest.approx(exact, rel=1e-5)
    assert norm_of(np.zeros(5, np.float32)) == 0.0
    assert math.isnan(norm_of(np.array([1, math.nan], np.float32)))
    assert math.isnan(norm_of(np.array([1e30, math.inf], np.float32)))


def test_the_default_bound_grows_with_the_model_and_is_never_zero() -> None:
    assert default_max_norm(np.zeros(4, np.float32)) == 2000.0
    assert default_max_norm(np.array([3, 4, 0, 0], np.float32)) == 7000.0


def test_an_update_of_the_expected_size_fits_into_max_bytes() -> None:
    lengths = {"delta": 1000, "dc": 900}
    named = {k: np.ones(n, np.float32) for k, n in lengths.items()}
    big = Update("a", 1, named, 1, {f"metric-{i}": 0.123456789 for i in range(10_000)}, "r" * 100)
    assert len(encode(big)) <= max_bytes(lengths)
    assert max_bytes({}) < 2 << 20


TASK = Task(5, "fit", {}, {"run": "run", "reply_bytes": 2000})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"x" * 2001, "size"),
        (encode(Update("a", 5, {"delta": np.zeros(600, np.float32)}, 1)), "size"),
        (b"", "header"),
        (b"x" * 2000, "header"),
        (encode(GOOD)[:-1], "header"),
        (encode(GOOD) + b"\0", "header"),
        (encode(Task(5, "fit", {})), "header"),
        (encode(replace(GOOD, client="b")), "unknown-client"),
        (encode(Failure("b", 5, "crashed")), "unknown-client"),
    ],
)
def test_bytes_that_are_no_answer_become_a_typed_failure(data: bytes, reason: str) -> None:
    reply = receive(data, "a", TASK)
    assert isinstance(reply, Failure)
    assert (reply.client, reply.round, reply.reason, reply.run) == ("a", 5, reason, "run")
    assert reason in REASONS


def test_every_truncation_becomes_a_failure() -> None:
    data = encode(GOOD)
    replies = [receive(data[:n], "a", TASK) for n in range(len(data))]
    assert {r.reason for r in replies if isinstance(r, Failure)} == {"header"}
    assert all(isinstance(r, Failure) for r in replies)


def test_good_bytes_pass() -> None:
    reply = receive(encode(GOOD), "a", TASK)
    assert isinstance(reply, Update)
    assert gate().admit(reply).vectors["delta"].tolist() == [3, 4]
    assert receive(encode(Failure("a", 5, "crashed")), "a", TASK) == Failure("a", 5, "crashed")
    assert isinstance(receive(encode(GOOD), "a", Task(5, "fit", {})), Update)


SCORE = Evaluation("a", 5, {"map50": 0.5}, 3, "run")


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("unknown-client", {"client": "c"}),
        ("unknown-client", {"client": None}),
        ("stale-round", {"round": 4}),
        ("stale-round", {"run": "other"}),
        ("weight", {"weight": -1}),
        ("weight", {"weight": 10**400}),
        ("weight", {"weight": True}),
        ("metrics", {"metrics": {"map50": math.nan}}),
        ("metrics", {"metrics": None}),
    ],
)
def test_evaluations_are_checked_too(reason: str, change: Mapping[str, Any]) -> None:
    admit_evaluation(SCORE, "run", 5, {"a"})
    with pytest.raises(Refused) as caught:
        admit_evaluation(replace(SCORE, **change), "run", 5, {"a"})
    assert caught.value.reason == reason
