"""SCAFFOLD through a whole federation: it exercises every seam of the engine.

State on the server, a broadcast vector, state at the site, a second vector up, and even weights.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import Failure, Federation, History, NumpyClient, Task, Update
from polypfed.backends import Local
from polypfed.core import checkpoint as checkpoints
from polypfed.core.errors import QuorumError
from polypfed.core.messages import Reply
from polypfed.core.model import Vector
from polypfed.core.pack import unpack_state
from polypfed.core.reduce import Mean
from polypfed.federation import Event
from polypfed.strategies import FedAvg, Scaffold
from polypfed.strategies.base import uploads
from tests.problems import Quadratic, Scripted, absent, bits, scores

A = (1.0, 4.0, 2.0, 0.5, 3.0)
B = (0.0, 1.0, -1.0, 2.0, 0.4)
STEPS = (2, 7, 3, 9, 1)
OPTIMUM = sum(a * b for a, b in zip(A, B, strict=True)) / sum(A)


def clients(count: int = 5, size: int = 2, weights: tuple[int, ...] = (90, 1, 20, 3, 50)) -> list[NumpyClient]:
    """Different optima, curvatures and numbers of steps; the examples differ too, and must not matter."""
    return [
        NumpyClient(f"s{i}", Quadratic(A[i], B[i]), np.zeros(size), lr=0.1, steps=STEPS[i], weight=weights[i])
        for i in range(count)
    ]


def train(rounds: int, strategy: Any, **settings: Any) -> Vector:
    history = Federation(clients=clients(), strategy=strategy, evaluate="off", **settings).run(rounds, Local())
    assert history.model is not None
    return history.model


def test_the_published_check_values() -> None:
    """f = a/2 (x - b)^2, a = (1, 4), b = (0, 1), lr = 0.1, K = 5: iterates worked out in float64."""
    two = [NumpyClient(f"s{i}", Quadratic((1, 4)[i], i), [0.0], lr=0.1, steps=5) for i in (0, 1)]
    for rounds, value in ((1, 0.46112), (2, 0.697709144), (3, 0.7853054088)):
        found = Federation(clients=two, strategy=Scaffold()).run(rounds, Local()).model
        assert found is not None
        assert found[0] == pytest.approx(value, abs=1e-6)


def test_it_reaches_the_optimum_where_fedavg_does_not() -> None:
    assert train(150, Scaffold()) == pytest.approx([OPTIMUM] * 2, abs=2e-6)
    for strategy in (FedAvg(), FedAvg(reducer=Mean("uniform"))):
        assert np.abs(train(150, strategy) - OPTIMUM).min() > 0.05


def test_it_reaches_the_optimum_with_two_of_five_a_round() -> None:
    assert train(600, Scaffold(), per_round=2) == pytest.approx([OPTIMUM] * 2, abs=1e-5)


@pytest.mark.parametrize("per_round", [None, 1, 2, 4])
def test_c_is_the_mean_of_all_c_i_after_every_round(tmp_path: Path, per_round: int | None) -> None:
    hosted = clients()
    checked: list[int] = []

    def check(event: Event) -> None:
        if event.kind != "saved":
            return
        now = checkpoints.load(tmp_path / "checkpoint")
        kept = [unpack_state(c.state()).get("c_i", np.zeros(2, np.float32)) for c in hosted]
        np.testing.assert_allclose(now.state["c"], np.mean(kept, axis=0, dtype=np.float64), atol=2e-6)
        checked.append(event.round)
        if event.round > 8:
            assert np.abs(now.state["c"]).max() < np.abs(kept).max()  # it is not merely all zeros

    fed = Federation(clients=hosted, strategy=Scaffold(), per_round=per_round, evaluate="off")
    fed.run(12, Local(), tmp_path, check)
    assert checked == list(range(13))


def losing(lost: Mapping[int, str]) -> Scripted:
    """The update of `lost[round]` disappears on its way, after the site has stored its new state."""

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield absent(name, task) if lost.get(task.round) == name else reply

    return Scripted(script)


def test_lost_updates_do_not_move_the_limit() -> None:
    backend = losing({r: f"s{r % 5}" for r in range(1, 30, 2)})
    fed = Federation(clients=clients(), strategy=Scaffold(), evaluate="off")
    history = fed.run(180, backend)
    assert history.model == pytest.approx([OPTIMUM] * 2, abs=2e-6)
    assert len(history.failures) == 15


def states_on_disk(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("sites/*/state/*"))}


def fed(**settings: Any) -> Federation:
    return Federation(clients=clients(), strategy=Scaffold(), **({"per_round": 3} | settings))


@pytest.mark.parametrize("stops", [(1,), (4,), (1, 2, 3, 5)])
def test_stopping_and_resuming_gives_the_bits_of_a_straight_run(tmp_path: Path, stops: tuple[int, ...]) -> None:
    straight = fed().run(6, Local(), tmp_path / "straight")
    history = fed().run(stops[0], Local(), tmp_path / "broken")
    for rounds in (*stops[1:], 6):  # each time with clients that remember nothing
        history = fed().resume(tmp_path / "broken", rounds, Local())
    assert bits(history) == bits(straight)
    assert scores(history) == scores(straight)
    assert states_on_disk(tmp_path / "broken") == states_on_disk(tmp_path / "straight")
    assert len(states_on_disk(tmp_path / "broken")) > 5


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_does_not_cost_the_sites_their_state(tmp_path: Path, damaged: int) -> None:
    straight = fed().run(8, Local(), tmp_path / "straight")
    fed().run(6, Local(), tmp_path / "run")
    for path in sorted((tmp_path / "run" / "checkpoint").iterdir())[-damaged:]:
        path.write_bytes(path.read_bytes()[:-1])
    history = fed().resume(tmp_path / "run", 8, Local())
    assert not history.failures
    assert bits(history) == bits(straight)


def test_a_run_that_ended_below_its_quorum_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    straight = fed().run(6, Local(), tmp_path / "straight")

    def from_round_four(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield absent(name, task) if task.round >= 4 else reply

    with pytest.raises(QuorumError):
        fed().run(6, Scripted(from_round_four), tmp_path / "run")
    assert bits(fed().resume(tmp_path / "run", 6, Local())) == bits(straight)


def test_worker_processes_give_the_same_bits(tmp_path: Path) -> None:
    straight = fed().run(5, Local(), tmp_path / "one")
    spread = fed().run(5, Local(workers=2), tmp_path / "two")
    unkept = fed().run(5, Local(workers=2))
    assert not spread.failures
    assert bits(spread) == bits(straight) == bits(unkept)
    assert scores(spread) == scores(straight)
    assert states_on_disk(tmp_path / "two") == states_on_disk(tmp_path / "one")


def test_a_site_that_lost_its_state_says_so_instead_of_spoiling_the_limit(tmp_path: Path) -> None:
    fed(per_round=None).run(3, Local(), tmp_path)
    for path in (tmp_path / "sites" / "s1" / "state").iterdir():
        path.unlink()
    history = fed(per_round=None).resume(tmp_path, 4, Local())
    assert next((f.client, f.round, f.reason) for f in history.failures if f.round == 4) == ("s1", 4, "state")
    assert "Give the site its state folder back" in history.failures[0].detail


def test_the_gate_knows_the_second_vector() -> None:
    assert uploads(Scaffold(), 7) == {"dc": 7}

    def without_dc(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        if name == "s0" and isinstance(reply, Update):
            reply = Update(name, reply.round, {"delta": reply.vectors["delta"]}, 1, {}, reply.run)
        yield reply

    history = Federation(clients=clients(), strategy=Scaffold()).run(1, Scripted(without_dc))
    assert [(f.client, f.reason) for f in history.failures] == [("s0", "keys")]


def test_a_site_that_did_no_work_keeps_its_control(tmp_path: Path) -> None:
    """Weight 0: no delta, no dc, and what the site kept of that round is dropped."""
    idle = clients(weights=(90, 0, 20, 3, 50))
    history: History = Federation(clients=idle, strategy=Scaffold()).run(4, Local(), tmp_path)
    now = checkpoints.load(tmp_path / "checkpoint")
    assert "s1" not in now.accepted
    others = [unpack_state(c.state())["c_i"] for c in idle if c.name != "s1"]
    np.testing.assert_allclose(now.state["c"], np.sum(others, axis=0) / 5, atol=2e-6)
    assert not [f for f in history.failures if isinstance(f, Failure)]
