"""Two tasks in one message, from the server's exchange to a site's ClientApp and back, without Flower's processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Context, Error, Message, RecordDict

from polypfed import Evaluation, Failure, Task, Update
from polypfed.backends.flower.client_app import app
from polypfed.backends.flower.pairs import InPairs, unpack_tasks
from polypfed.core.messages import Reply
from polypfed.federation.riding import Combines
from tests.backends.flower.test_client_app import TEXT
from tests.backends.flower.test_client_app import identity as identity  # every test needs it
from tests.backends.flower.test_grid import Scripted

X = np.arange(3, dtype=np.float32)


def carried(script: Any, first: dict[str, Any], main: dict[str, Any]) -> tuple[list[Reply], Scripted]:
    grid = Scripted(script)
    backend = InPairs(grid, ["a"], lambda: {"a": 7}, poll=0.01)
    assert isinstance(backend, Combines)
    tasks = Task(1, "evaluate", first, {"run": "r"}), Task(2, "fit", main, {"run": "r"})
    found = list(backend.exchange_both({"a": tasks[0]}, {"a": tasks[1]}, 20.0))
    assert [task for task, _ in found] == list(tasks)  # each is answered, once
    return [reply for _, reply in found], grid


@pytest.fixture
def site(tmp_path: Path) -> Any:
    (tmp_path / "site.toml").write_text(TEXT)
    config = {"site": str(tmp_path / "site.toml")}
    return lambda m: [Message(app(m, Context(1, 7, config, RecordDict(), {})).content, reply_to=m)]


@pytest.mark.parametrize("main", [{"model": X}, {"model": X.copy(), "c": X}, {"model": X + 1}, {"c": X}])
def test_a_site_answers_both(site: Any, main: dict[str, Any]) -> None:
    main = {"model": X, **main} if "c" in main else main
    replies, grid = carried(site, {"model": X}, main)
    assert [type(r) for r in replies] == [Evaluation, Update]
    assert [r.round for r in replies] == [1, 2]
    assert len(grid.pushed) == 1
    tasks = unpack_tasks(grid.pushed[0].content)[0]
    assert [{n: v.tolist() for n, v in t.vectors.items()} for t in tasks] == [
        {"model": X.tolist()}, {n: v.tolist() for n, v in main.items()},
    ]  # fmt: skip


def test_equal_vectors_travel_once(site: Any) -> None:
    _, grid = carried(site, {"model": X}, {"model": X.copy()})
    assert list(grid.pushed[0].content["arrays"]) == ["model"]
    _, grid = carried(site, {"model": X}, {"model": X + 1})
    assert sorted(grid.pushed[0].content["arrays"]) == ["first/model", "model"]


def test_a_lost_message_is_a_failure_of_both() -> None:
    replies, _ = carried(lambda m: [Message(Error(8, "gone"), reply_to=m)], {"model": X}, {"model": X})
    assert [(r.round, getattr(r, "reason", "")) for r in replies] == [(1, "lost"), (2, "lost")]


def test_a_site_that_answers_one_task_is_said_to(site: Any) -> None:
    def half(message: Message) -> list[Message]:
        answered = site(message)
        del answered[0].content["config"]["first"]
        return list(answered)

    replies, _ = carried(half, {"model": X}, {"model": X})
    assert isinstance(replies[0], Failure)
    assert replies[0].detail == "the first of two tasks is not answered"
    assert isinstance(replies[1], Update)
