"""KeepBest: what is rolled back, what the history shows, and when it is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import Evaluation, Federation, NumpyClient, Task
from polypfed.backends import Local
from polypfed.core import checkpoint as checkpoints
from polypfed.core.errors import ConfigError
from polypfed.core.pack import unpack_state
from polypfed.federation import Event
from polypfed.strategies import Ditto, FedAvg, FedAvgM, FedBN, FedPer, KeepBest, Registry, Scaffold
from polypfed.testing import sample_sites
from tests.problems import Quadratic, bits, scores, sites


@dataclass
class Judged:
    """A site that trains as NumpyClient does and gives each round's model the score it was told to."""

    inner: NumpyClient
    told: Mapping[int, float]
    metric: str = "map50"
    weight: int = 1

    @property
    def name(self) -> str:
        return self.inner.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def initial(self) -> Any:
        return self.inner.initial()

    def fit(self, task: Task) -> Any:
        return self.inner.fit(task)

    def evaluate(self, task: Task) -> Evaluation:
        return Evaluation(self.name, task.round, {self.metric: self.told[task.round]}, self.weight)

    def state(self) -> bytes:
        return self.inner.state()

    def restore(self, state: bytes) -> None:
        self.inner.restore(state)


def judged(*told: Any, weights: tuple[int, ...] = (1, 1), **more: Any) -> list[Any]:
    clients = [
        NumpyClient(f"s{i}", Quadratic(1 + i, 2 * i), [0.5, -1.0], lr=0.1, steps=2 + i) for i in range(len(told))
    ]
    rows = zip(clients, told, weights, strict=False)
    return [Judged(c, dict(enumerate(t)), weight=w, **more) for c, t, w in rows]


GOOD = (0.1, 0.2, 0.1, 0.3, 0.4)  # round 2 is worse than round 1, rounds 3 and 4 are better than what stayed


def watched(strategy: Any, rounds: int, folder: Path, clients: list[Any]) -> tuple[Any, dict[int, Any]]:
    seen: dict[int, Any] = {}

    def keep(event: Event) -> None:
        if event.kind == "saved":
            now = checkpoints.load(folder / "checkpoint")
            kept = {c.name: {k: v.copy() for k, v in unpack_state(c.state()).items()} for c in clients}
            seen[event.round] = (now.x.tobytes(), {k: v.tobytes() for k, v in now.state.items()}, now.accepted, kept)

    return Federation(clients=clients, strategy=strategy).run(rounds, Local(), folder, keep), seen


@pytest.mark.parametrize("inner", [FedAvgM(), Scaffold()], ids=lambda s: type(s).__name__)
def test_a_rejected_round_leaves_model_state_and_sites_as_they_were(tmp_path: Path, inner: Any) -> None:
    history, seen = watched(KeepBest(inner=inner), 4, tmp_path, judged(GOOD, GOOD))
    assert seen[2][:3] == seen[1][:3]
    assert len({seen[r][0] for r in seen}) == 4
    assert history.values("rejected") == {2: 1.0}
    # rounds 3 and 4 of this run are 2 and 3 of one in which nothing was rejected: no seed enters these sites' training
    fresh, _ = watched(inner, 3, tmp_path / "fresh", judged(GOOD, GOOD))
    assert bits(history) == bits(fresh)


def test_the_history_shows_the_scores_of_the_model_that_stays(tmp_path: Path) -> None:
    history, _ = watched(KeepBest(), 4, tmp_path, judged(GOOD, GOOD))
    assert history.values("map50") == {0: 0.1, 1: 0.2, 2: 0.2, 3: 0.3, 4: 0.4}
    assert history.values("map50", "s1") == {0: 0.1, 1: 0.2, 2: 0.2, 3: 0.3, 4: 0.4}
    assert history.values("candidate/map50") == {2: 0.1}
    assert history.values("candidate/map50", "s0") == {2: 0.1}
    assert history.best_round == 4


def rejected(strategy: Any, *told: Any, **more: Any) -> list[int]:
    clients = judged(*told, **more)
    return sorted(Federation(clients=clients, strategy=strategy).run(len(told[0]) - 1, Local()).values("rejected"))


def test_the_rule() -> None:
    up, down, flat = (0.1, 0.2, 0.3), (0.3, 0.2, 0.1), (0.2, 0.2, 0.2)
    assert rejected(KeepBest(), up, up) == []
    assert rejected(KeepBest(), down, down) == [1, 2]
    assert rejected(KeepBest(), flat, flat) == []
    assert rejected(KeepBest(tolerance=0.01), flat, flat) == [1, 2]
    assert rejected(KeepBest(tolerance=0.05), up, up) == []
    assert rejected(KeepBest(), up, down) == []  # the mean stays
    assert rejected(KeepBest(), up, down, weights=(1, 3)) == [1, 2]  # by validation examples
    assert rejected(KeepBest(), up, down, weights=(1, 0)) == []  # no examples, no voice
    assert rejected(KeepBest(metric="-map50"), up, up) == [1, 2]
    assert rejected(KeepBest(metric="-map50"), down, down) == []


def test_the_veto_of_a_single_site() -> None:
    up, down = (0.1, 0.5, 0.6), (0.3, 0.25, 0.1)
    assert rejected(KeepBest(veto=0.1), up, down) == [2]
    assert rejected(KeepBest(veto=0.01), up, down) == [1, 2]
    assert rejected(KeepBest(veto=0.5), up, down) == [2]  # round 2: the mean falls
    assert rejected(KeepBest(metric="-map50", veto=0.3), down, up) == [1, 2]


def test_what_is_compared_was_scored_by_the_same_sites() -> None:
    """A site that did not score one of the two models has no voice; if none did, the previous model stays."""
    gate = KeepBest()
    low, high = ({"map50": 0.1}, 5), ({"map50": 0.9}, 5)
    assert gate.keeps({"a": low, "b": high}, {"a": high})
    assert not gate.keeps({"a": high, "b": low}, {"a": low, "c": high})
    assert not gate.keeps({"a": low}, {"b": high})
    assert not gate.keeps({}, {})
    both = KeepBest(inner=KeepBest(metric="-loss"))
    assert not both.keeps({"a": ({"map50": 0, "loss": 1}, 1)}, {"a": ({"map50": 1, "loss": 2}, 1)})
    assert both.keeps({"a": ({"map50": 0, "loss": 2}, 1)}, {"a": ({"map50": 1, "loss": 1}, 1)})


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resume_around_a_rejected_round_gives_the_same_bits(tmp_path: Path, stop: int) -> None:
    strategy = KeepBest(metric="-loss", veto=0.02, inner=FedBN(inner=Scaffold()))

    def fed() -> Federation:
        return Federation(clients=sample_sites(), strategy=strategy, per_round=2, seed=2)

    straight = fed().run(6, Local(), tmp_path / "straight")
    assert 1 <= len(straight.values("rejected")) <= 5
    fed().run(stop, Local(), tmp_path / "broken")
    again = fed().resume(tmp_path / "broken", 6, Local())
    assert bits(again) == bits(straight)
    assert scores(again) == scores(straight)


def test_after_a_rejection_the_next_try_differs() -> None:
    """Same model, same sites, another seed: no deadlock."""
    tries: list[bytes] = []

    class Noted(KeepBest):
        def step(self, x: Any, state: Any, mean: Any, cohort: Any) -> Any:
            tries.append(mean["delta"].tobytes())
            return super().step(x, state, mean, cohort)

    Registry.add(Noted)
    clients = sample_sites(3)
    history = Federation(clients=clients, strategy=Noted(metric="map50", tolerance=10)).run(3, Local())
    assert history.values("rejected") == {1: 1.0, 2: 1.0, 3: 1.0}
    assert len({*tries[-3:]}) == 3
    assert history.model is not None
    assert np.array_equal(history.model, clients[0].initial()[1])  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: FedPer(inner=s), lambda s: Ditto(inner=s)])
def test_without_evaluation_there_is_nothing_to_decide_by(wrap: Any) -> None:
    with pytest.raises(ConfigError, match=r"^evaluate: KeepBest decides by evaluation"):
        Federation(clients=sample_sites(), strategy=wrap(KeepBest()), evaluate="off")


def test_a_metric_that_nobody_reports_is_refused_in_round_zero() -> None:
    with pytest.raises(ConfigError, match=r"no site with validation examples reports 'map5O'.*gradient_norm"):
        Federation(clients=sites(), strategy=KeepBest(metric="map5O")).run(3, Local())
    idle = judged((0.1, 0.2), (0.1, 0.2), weights=(0, 0))
    with pytest.raises(ConfigError, match="They report: nothing"):
        Federation(clients=idle, strategy=KeepBest()).run(1, Local())


def test_the_gate_passes_the_inner_strategy_s_refusals_on() -> None:
    with pytest.raises(ConfigError, match=r"^weights.site-00: has no weight"):
        Federation(clients=sites(), strategy=KeepBest(inner=Scaffold(weights={"site-01": 1.0}))).run(1, Local())
    assert KeepBest(inner=FedAvg()).reducer == FedAvg().reducer
