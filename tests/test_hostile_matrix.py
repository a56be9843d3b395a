"""The matrix of hostile updates on Local, as bytes through the gate; on engines: tests/live/*/test_hostile.py."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from polypfed import Federation, Task, Update
from polypfed.backends import Local
from polypfed.core import audit
from polypfed.core.gate import REASONS, receive
from polypfed.core.messages import Reply
from polypfed.privacy.keyring import provision
from tests import hostile
from tests.hostile import BAD, CASES, STRATEGIES
from tests.problems import Scripted, bits, sites

by_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def body(update: Update) -> bytes:
    """The vectors as safetensors, whatever their dtype."""
    return safetensors.numpy.save({name: np.ascontiguousarray(v) for name, v in update.vectors.items()})


@by_strategy
def test_every_case_is_refused_and_the_model_is_the_honest_one(tmp_path: Path, strategy: str) -> None:
    bad = hostile.Hostile(tmp_path / "sites" / BAD / "keys")

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        if name == BAD and isinstance(reply, Update):
            update, head = bad.answer(reply)
            yield receive(head + body(update), name, task)
        else:
            yield reply

    clients = sites()
    provision([c.name for c in clients], tmp_path)
    fed = hostile.federation(strategy, clients=clients, keys=tmp_path / "keys")
    hostile.check(fed.run(hostile.ROUNDS, Scripted(script), tmp_path), strategy, "local")
    written = [(e["actor"], e["round"]) for e in audit.entries(tmp_path / "audit.jsonl") if e["event"] == "failure"]
    assert written == [(BAD, number) for number in range(1, len(CASES) + 1)]


@by_strategy
def test_that_site_would_have_moved_the_model(strategy: str) -> None:
    everyone: Federation = hostile.federation(strategy, clients=sites())
    assert bits(everyone.run(hostile.ROUNDS, Local())) != hostile.honest_only(strategy)


def test_the_table_has_every_reason_that_one_answer_can_have() -> None:
    """Late and twice take two answers: tests/test_hostile.py, tests/backends/flower/test_grid.py."""
    assert {case.reason for case in CASES} == set(REASONS) - {"late", "duplicate"}
    assert len({case.name for case in CASES}) == len(CASES) > 25
