"""The exchange over a Grid, with a scripted Grid in the place of Flower's."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")

import httpx
from flwr.app import Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from polypfed import Failure, Task, Update
from polypfed.backends.flower.grid import OverGrid
from polypfed.backends.flower.records import pack_reply, unpack_task
from polypfed.core.messages import Reply

MODEL = {"model": np.zeros(3, np.float32)}
NODES = {"a": 11, "b": 12, "c": 13}
Script = Callable[[Message], list[Message]]


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    before = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


class Scripted:
    """Takes messages as `InMemoryGrid` does (ids of failed ones are left out) or as `HttpGrid` (they are None)."""

    def __init__(self, script: Script, lose: Sequence[int] = (), none: bool = False) -> None:
        self.script, self.lose, self.none = script, lose, none
        self.pushed: list[Message] = []
        self.ready: list[Message] = []

    def push_messages(self, messages: Any) -> list[Any]:
        ids: list[Any] = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{len(self.pushed)}"
            self.pushed.append(message)
            if message.metadata.dst_node_id in self.lose:
                ids += [None] if self.none else []
                continue
            ids.append(message.metadata.message_id)
            self.ready += self.script(message)
        return ids

    def pull_messages(self, ids: Any) -> list[Message]:
        out = [m for m in self.ready if m.metadata.reply_to_message_id in set(ids)]
        self.ready = [m for m in self.ready if m not in out]
        return out


def honest(message: Message) -> list[Message]:
    task, site, _ = unpack_task(message.content)
    update = Update(site, task.round, {"delta": np.ones(3, np.float32)}, 5, {}, task.run)
    return [Message(pack_reply(update), reply_to=message)]


def ask(grid: Any, deadline: float = 5.0, nodes: dict[str, int] = NODES, **settings: Any) -> dict[str, Reply]:
    backend = OverGrid(grid, list("cab"), lambda: nodes, poll=0.01, **settings)
    tasks = {n: Task(2, "fit", MODEL, {"run": "r"}) for n in backend.clients}
    replies = list(backend.exchange(tasks, deadline))
    assert sorted(r.client for r in replies) == ["a", "b", "c"]  # everyone is answered for, once
    return {r.client: r for r in replies}


def reasons(replies: dict[str, Reply]) -> dict[str, str]:
    return {n: getattr(r, "reason", "") for n, r in sorted(replies.items())}


def test_each_site_gets_its_message_and_is_heard() -> None:
    grid = Scripted(honest)
    assert reasons(ask(grid)) == {"a": "", "b": "", "c": ""}
    assert [m.metadata.dst_node_id for m in grid.pushed] == [11, 12, 13]
    assert {m.metadata.message_type for m in grid.pushed} == {"train"}
    assert {m.metadata.group_id for m in grid.pushed} == {"2"}
    records = [m.content["arrays"] for m in grid.pushed]
    assert records[0] is records[1] is records[2]  # the model is encoded once


@pytest.mark.parametrize("none", [False, True])
def test_a_message_that_is_not_taken_is_a_failure(none: bool) -> None:
    assert reasons(ask(Scripted(honest, lose=[11], none=none))) == {"a": "absent", "b": "", "c": ""}


def test_a_site_without_a_node_is_absent() -> None:
    assert reasons(ask(Scripted(honest), nodes={"b": 12})) == {"a": "absent", "b": "", "c": "absent"}


def test_silence_ends_at_the_deadline() -> None:
    begun = monotonic()
    replies = ask(Scripted(lambda m: [] if m.metadata.dst_node_id == 12 else honest(m)), 0.3)
    assert reasons(replies) == {"a": "", "b": "deadline", "c": ""}
    assert 0.3 <= monotonic() - begun < 2


@pytest.mark.parametrize(("code", "reason"), [(0, "lost"), (1, "client"), (2, "crashed"), (5, "absent"), (8, "lost")])
def test_an_error_of_flowers_becomes_a_failure(code: int, reason: str) -> None:
    def script(message: Message) -> list[Message]:
        return (
            [Message(Error(code, "x\ny"), reply_to=message)] if message.metadata.dst_node_id == 12 else honest(message)
        )

    replies = ask(Scripted(script))
    assert reasons(replies) == {"a": "", "b": reason, "c": ""}
    assert replies["b"].detail == "x y"  # type: ignore[union-attr]


def test_replies_out_of_order_twice_and_from_nowhere() -> None:
    def script(message: Message) -> list[Message]:
        if message.metadata.dst_node_id != 13:
            held.extend(honest(message))
            return []
        return [*honest(message), *held[::-1], *held]

    held: list[Message] = []
    assert reasons(ask(Scripted(script))) == {"a": "", "b": "", "c": ""}


class Stuck(Scripted):
    """As over HTTP: whoever takes b's reply, which has not come in whole, waits; it asks for one at a time."""

    def __init__(self) -> None:
        super().__init__(honest)
        self.left = threading.Event()

    def pull_messages(self, ids: Any) -> list[Message]:
        if any(m.metadata.dst_node_id == 12 and m.metadata.message_id in ids for m in self.pushed):
            self.left.wait(30)
        return super().pull_messages(ids)


def test_a_reply_that_never_comes_in_whole_delays_nobody_elses() -> None:
    grid, begun = Stuck(), monotonic()
    assert reasons(ask(grid, deadline=0.5, apart=True)) == {"a": "", "b": "deadline", "c": ""}
    assert monotonic() - begun < 10
    grid.left.set()


def test_replies_taken_apart_are_those_taken_together() -> None:
    assert reasons(ask(Scripted(honest), apart=True)) == {"a": "", "b": "", "c": ""}


def test_an_engine_that_is_lost_ends_an_exchange_apart() -> None:
    class Gone(Scripted):
        def pull_messages(self, ids: Any) -> list[Message]:
            raise httpx.ConnectError("gone")

    with pytest.raises(httpx.ConnectError):
        ask(Gone(honest), apart=True)


@pytest.mark.parametrize("content", [RecordDict(), None])
def test_a_reply_that_is_none_is_a_failure(content: Any) -> None:
    def script(message: Message) -> list[Message]:
        found = honest(message)
        if message.metadata.dst_node_id == 11:
            found[0].__dict__["_content"] = content
        return found

    assert reasons(ask(Scripted(script)))["a"] in ("header", "lost")


def test_a_node_that_answers_for_another_site_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    def script(message: Message) -> list[Message]:
        other = Update("c", 2, {"delta": np.ones(3, np.float32)}, 5, {}, "r")
        return [Message(pack_reply(other), reply_to=message)] if message.metadata.dst_node_id == 11 else honest(message)

    replies = ask(Scripted(script))
    assert reasons(replies) == {"a": "unknown-client", "b": "", "c": ""}
    assert "site a, round 2: unknown-client: the reply names itself 'c'" in caplog.text


def test_what_was_never_begun_is_sent_again() -> None:
    tries: list[str] = []

    def script(message: Message) -> list[Message]:
        if message.metadata.dst_node_id != 12:
            return honest(message)
        tries.append(message.metadata.message_id)
        return honest(message) if len(tries) > 3 else [Message(Error(0, "restarting"), reply_to=message)]

    assert reasons(ask(Scripted(script), unseen=lambda m: True)) == {"a": "", "b": "", "c": ""}
    assert len(tries) == 4
    tries.clear()
    assert reasons(ask(Scripted(script)))["b"] == "lost"


def test_a_deadline_passes_while_the_engine_is_at_work() -> None:
    """The engine may take its time between two replies; what has come by then still counts."""
    backend = OverGrid(Scripted(honest), list("abc"), lambda: NODES, poll=0.01)  # type: ignore[arg-type]
    found = []
    for reply in backend.exchange({n: Task(1, "fit", MODEL, {"run": "r"}) for n in "abc"}, 0.2):
        found.append(type(reply))
        time.sleep(0.15)
    assert found == [Update, Update, Update]


def test_an_endless_deadline_is_no_error() -> None:
    assert not [r for r in ask(Scripted(honest), float("inf")).values() if isinstance(r, Failure)]
