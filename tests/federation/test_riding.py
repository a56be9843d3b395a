"""Evaluations that ride with the next exchange: fewer messages, the same bits and rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from polypfed import Failure, Federation, Task
from polypfed.backends import Local
from polypfed.core.errors import BackendError
from polypfed.core.messages import Reply
from polypfed.core.rundir import load_model
from polypfed.privacy import stages
from polypfed.strategies import FedAdam, FedAvg, FedBuff, KeepBest, Scaffold
from tests.problems import Odd, bits, divide, scores, sites


@dataclass
class Pairs(Local):
    """Local, with two tasks in a message; counts the messages of a site, and fails at the `lost`-th exchange."""

    lost: int = 0
    said: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        self._count(next(iter(tasks.values())).kind)
        yield from super().exchange(tasks, deadline)

    def exchange_both(
        self, first: Mapping[str, Task], main: Mapping[str, Task], deadline: float
    ) -> Iterator[tuple[Task, Reply]]:
        self._count(next(iter(first.values())).kind, next(iter(main.values())).kind)
        for tasks in (first, main):
            for reply in super().exchange(tasks, deadline):
                yield tasks[reply.client], reply

    def _count(self, *kinds: str) -> None:
        self.said.append(kinds)
        if len(self.said) == self.lost:
            raise BackendError("gone", where="backend")


def fed(strategy: Any = None, clients: Any = None, **more: Any) -> Federation:
    return Federation(clients=clients or sites(3), strategy=strategy or FedAvg(), keep_best="-gradient_norm", **more)


@pytest.mark.parametrize("strategy", [FedAvg(), FedAdam(), Scaffold()])
def test_half_the_messages_and_the_same_rows(strategy: Any) -> None:
    backend = Pairs()
    there, here = fed(strategy).run(4, backend), fed(strategy).run(4, Local())
    assert backend.said == [("evaluate", "fit")] * 4 + [("evaluate",)]
    assert bits(there) == bits(here)
    assert sorted(scores(there)) == sorted(scores(here))
    assert (there.best_round, there.best.tobytes()) == (here.best_round, here.best.tobytes())  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["he", "secagg"])
def test_under_encryption_and_masks(mode: Any, tmp_path: Path) -> None:
    pytest.importorskip("tenseal")
    backend, built = Pairs(), stages(mode)
    there = fed(stages=built).run(2, backend, tmp_path / "a")
    here = fed(stages=built).run(2, Local(), tmp_path / "b")
    sizes = {"bytes_up", "bytes_down"}  # of secrets drawn anew, as JSON
    rows = [sorted(r for r in scores(h) if r[2] not in sizes) for h in (there, here)]
    assert rows[0] == rows[1]
    if mode == "secagg":
        assert bits(there) == bits(here)
        assert backend.said[0] == ("evaluate", "step")
        return
    assert backend.said == [("evaluate",), ("step",), ("fit",), ("evaluate", "fit"), ("evaluate",)]
    models = [load_model(tmp_path / run / "sites/site-00/model.safetensors")[1] for run in "ab"]
    assert models[0].tobytes() == models[1].tobytes()


def test_sites_that_are_not_asked_to_train_are_scored_on_their_own() -> None:
    backend = Pairs()
    there = fed(per_round=2).run(3, backend)
    assert ("evaluate", "fit") not in backend.said
    assert sorted(scores(there)) == sorted(scores(fed(per_round=2).run(3, Local())))


@pytest.mark.parametrize(
    ("strategy", "evaluate"),
    [(KeepBest(metric="-gradient_norm"), "global"), (FedBuff(buffer=2), "global"), (FedAvg(), "matrix")],
)
def test_two_messages_where_one_will_not_do(strategy: Any, evaluate: Any) -> None:
    backend = Pairs()
    fed(strategy, evaluate=evaluate).run(2, backend)
    assert all(len(kinds) == 1 for kinds in backend.said)


def test_a_site_that_cannot_train_is_scored_all_the_same() -> None:
    clients = [Odd(c, divide, when=(2,)) if c.name == "site-00" else c for c in sites(3)]
    there = fed(clients=clients, quorum=2).run(3, Pairs())
    assert [(f.client, f.round, f.reason) for f in there.failures] == [("site-00", 2, "crashed")]
    assert {(r["round"], r["site"]) for r in there.rows if r["metric"] == "gradient_norm" and r["round"] == 1} >= {
        (1, "site-00")
    }


@pytest.mark.parametrize("lost", [2, 3, 4])
@pytest.mark.parametrize("after", [Pairs, Local])
def test_a_run_that_is_lost_before_its_scores_came_gets_them_later(tmp_path: Path, lost: int, after: Any) -> None:
    """Lost in round `lost`, or behind the last one; resumed over messages of either kind."""
    with pytest.raises(BackendError):
        fed().run(3, Pairs(lost=lost), tmp_path)
    there = fed().resume(tmp_path, 3, after())
    here = fed().run(3, Local())
    assert bits(there) == bits(here)
    assert sorted(scores(there)) == sorted(scores(here))
    assert not any(isinstance(f, Failure) for f in there.failures)
