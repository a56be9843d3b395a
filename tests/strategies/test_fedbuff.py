"""FedBuff against a second implementation, and what asynchronous rounds must not do."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import Federation, Task, Update
from polypfed.backends import Local
from polypfed.core import checkpoint as checkpoints
from polypfed.core.errors import ConfigError, QuorumError
from polypfed.core.messages import Reply
from polypfed.strategies import FedBN, FedBuff, FedPer, KeepBest
from polypfed.testing import SampleClient, sample_sites
from tests.problems import Scripted, absent, bits, scores, sites

BUFF = FedBuff(buffer=3, spread=1.0)


@dataclass
class Journal(Scripted):
    """Notes the fits in the order in which they are done."""

    done: list[tuple[str, int]] = field(default_factory=list)

    def exchange(self, tasks: Any, deadline: float) -> Iterator[Reply]:
        self.done += [(n, t.round) for n, t in tasks.items() if t.kind == "fit"]
        yield from super().exchange(tasks, deadline)


def honest(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
    yield reply


def test_the_discount_is_that_of_the_paper() -> None:
    """T32: a fresh update counts 1, not 1/2."""
    assert [BUFF.discount(s) for s in (0, 1, 3, 8)] == pytest.approx([1, 1 / math.sqrt(2), 0.5, 1 / 3])


def test_the_run_by_a_second_implementation() -> None:
    """x <- x + 1/K sum s D, with D from the version the site had fetched; the order is read off the journal."""
    journal = Journal(honest)
    history = Federation(clients=sites(7), strategy=BUFF, per_round=5, evaluate="off", seed=2).run(8, journal)
    versions = [sites(1)[0].initial()[1].astype(float)]
    by_name = {c.name: c for c in sites(7)}
    stale = 0
    for number in range(1, 9):
        buffer = np.zeros(3)
        for name, base in journal.done[3 * (number - 1) : 3 * number]:
            client, version = by_name[name], base - 1
            y, a, b = versions[version].copy(), client.gradient.a, client.gradient.b  # type: ignore[attr-defined]
            for _ in range(client.steps):
                y -= client.lr * a * (y - b)
            staleness = number - 1 - version
            stale += staleness > 0
            buffer += (y - versions[version]) / math.sqrt(1 + staleness)
        versions.append(versions[-1] + buffer / 3)
    assert history.model == pytest.approx(versions[-1], abs=2e-6)
    assert stale > 5
    assert not history.failures


def test_a_site_is_in_a_buffer_once_and_never_works_on_two_versions() -> None:
    journal = Journal(honest)
    history = Federation(clients=sites(5), strategy=FedBuff(buffer=5, spread=2.0), evaluate="off").run(6, journal)
    for number in range(6):
        assert len({name for name, _ in journal.done[5 * number : 5 * number + 5]}) == 5
    assert history.values("accepted") == dict.fromkeys(range(1, 7), 5.0)


def test_one_seed_gives_one_result_and_another_gives_another() -> None:
    settings: dict[str, Any] = {"clients": sites(6), "strategy": BUFF, "evaluate": "off"}
    first = Federation(**settings, seed=1).run(5, Local())
    assert bits(Federation(**settings, seed=1).run(5, Local())) == bits(first)
    assert bits(Federation(**settings, seed=2).run(5, Local())) != bits(first)


@pytest.mark.parametrize("stops", [(1,), (2, 3), (5,)])
def test_a_resume_with_work_in_flight_gives_the_bits_of_a_straight_run(tmp_path: Path, stops: tuple[int, ...]) -> None:
    def fed() -> Federation:
        return Federation(clients=sample_sites(7), strategy=BUFF, per_round=5)

    straight = fed().run(7, Local())
    history = fed().run(stops[0], Local(), tmp_path)
    now = checkpoints.load(tmp_path / "checkpoint")
    assert len(now.flight["jobs"]) >= 2
    assert {int(version) for version, _ in now.flight["jobs"].values()} == set(now.bases)
    for rounds in (*stops[1:], 7):
        history = fed().resume(tmp_path, rounds, Local())
    assert bits(history) == bits(straight)
    assert scores(history) == scores(straight)


def test_what_is_too_old_is_dropped_and_recorded() -> None:
    strict = FedBuff(buffer=2, spread=0.5, max_staleness=1)
    history = Federation(clients=sites(6), strategy=strict, evaluate="off").run(12, Local())
    assert {f.reason for f in history.failures} == {"late"}
    assert "at most 1 count" in history.failures[0].detail
    assert {r["value"] for r in history.rows if r["metric"] == "staleness"} == {0.0, 1.0}
    assert sum(history.values("failed").values()) == len(history.failures)


def test_a_site_that_keeps_state_is_served_when_it_was_stale() -> None:
    """Its state goes by the task it was given, not by the server round in which its update counted."""

    @dataclass
    class Counting:
        inner: Any
        fits: int = 0

        @property
        def name(self) -> str:
            return self.inner.name

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def fit(self, task: Task) -> Any:
            self.fits += 1
            return self.inner.fit(task)

        def state(self) -> bytes:
            return bytes([self.fits])

        def restore(self, state: bytes) -> None:
            self.fits = state[0] if state else 0

    clients = [Counting(c) for c in sites(6)]
    history = Federation(clients=clients, strategy=BUFF, evaluate="off").run(8, Local())
    assert not history.failures
    assert any(r["value"] > 0 for r in history.rows if r["metric"] == "staleness")
    assert sum(c.fits for c in clients) == 24


def test_lost_work_leaves_the_slot_to_another_site() -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield absent(name, task) if name == "site-01" else reply

    history = Federation(clients=sites(6), strategy=BUFF, evaluate="off").run(6, Scripted(script))
    assert set(history.values("accepted").values()) == {3.0}
    assert {f.client for f in history.failures} == {"site-01"}


def test_a_buffer_that_cannot_be_filled_counts_if_the_quorum_is_met() -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield reply if name in ("site-00", "site-01") else absent(name, task)

    history = Federation(clients=sites(4), strategy=BUFF, evaluate="off", quorum=2).run(2, Scripted(script))
    assert history.values("accepted") == {1: 2.0, 2: 2.0}
    with pytest.raises(QuorumError, match="the quorum is 3"):
        Federation(clients=sites(4), strategy=BUFF, evaluate="off", quorum=3).run(2, Scripted(script))


class Narrow(SampleClient):
    """Whatever it receives, its statistics end at 0.01."""

    def fit(self, task: Task) -> Update:
        update, buffers = super().fit(task), self.initial()[0].buffers
        delta = update.vectors["delta"].copy()
        delta[buffers] = np.float32(0.01) - task.vectors["model"][buffers]
        return replace(update, vectors={"delta": delta})


@pytest.mark.parametrize("rounds", range(1, 8))
def test_running_variances_stay_above_zero(rounds: int) -> None:
    """A stale site's statistics count as they are, not as a difference from a version long gone."""
    clients = [Narrow(f"site-{i:02d}", i) for i in range(6)]
    history = Federation(clients=clients, strategy=FedBuff(buffer=2, spread=1.0), evaluate="off").run(rounds, Local())
    assert history.model is not None
    assert history.spec is not None
    variance = history.spec.views(history.model)["backbone.1.running_var"]
    assert 0.01 - 1e-7 <= variance.min() <= variance.max() <= 1
    if rounds == 7:
        assert sum(r["value"] > 0 for r in history.rows if r["metric"] == "staleness") >= 2
        assert variance.max() < 0.1


def test_it_is_refused_where_it_cannot_work() -> None:
    with pytest.raises(ConfigError, match=r"^buffer: the buffer takes 10 updates of different sites, there are 4"):
        Federation(clients=sites(), strategy=FedBuff()).run(1, Local())
    for wrapper in (FedBN, FedPer, KeepBest):
        with pytest.raises(ConfigError, match=r"^inner: .* is asynchronous"):
            wrapper(inner=FedBuff())
