"""A site's ClientApp without a resident worker, called as Flower calls it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from polypfed import Task, Update
from polypfed.backends.flower.client_app import app
from polypfed.backends.flower.records import pack_task, unpack_reply
from polypfed.core.errors import ConfigError, MessageError
from polypfed.core.messages import Reply
from tests.live.flower import study

TASK = Task(1, "fit", {"model": np.zeros(3, np.float32)}, {"run": "r"})
TEXT = 'name = "a"\nclient = "tests.live.flower.study:client"\n[settings]\nnames = ["a"]\n'


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    before = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def answer(content: RecordDict, config: dict[str, Any], asked: str = "a") -> Reply:
    message = Message(content, 7, "train")
    message.metadata.__dict__["_message_id"] = "m"
    reply = app(message, Context(1, 7, config, RecordDict(), {}))
    return unpack_reply(reply.content, asked, TASK)


def test_it_answers_as_the_client_would(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(TEXT)
    reply = answer(pack_task(TASK, "a", 30.0), {"site": str(tmp_path / "site.toml")})
    assert isinstance(reply, Update)
    assert reply.vectors["delta"].tobytes() == study.client("a", tmp_path, ["a"]).fit(TASK).vectors["delta"].tobytes()


def test_a_task_for_another_site_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "site.toml").write_text(TEXT)
    reply: Any = answer(pack_task(TASK, "b", 30.0), {"site": str(tmp_path / "site.toml")}, asked="b")
    assert (reply.client, reply.reason) == ("b", "unknown-client")
    assert "the server knows this node's key as 'b', its own site.toml says 'a'" in caplog.text


def test_a_client_that_cannot_be_made_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(TEXT.replace("names", "nomes"))
    reply: Any = answer(pack_task(TASK, "a", 30.0), {"site": str(tmp_path / "site.toml")})
    assert (reply.client, reply.reason, reply.run) == ("a", "client", "r")
    assert "does not take the settings given" in reply.detail


def test_a_node_without_a_site_and_a_message_without_a_task_are_errors_of_flowers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--node-config: site is missing"):
        answer(pack_task(TASK, "a", 30.0), {})
    (tmp_path / "site.toml").write_text(TEXT)
    with pytest.raises(MessageError):
        answer(RecordDict(), {"site": str(tmp_path / "site.toml")})
