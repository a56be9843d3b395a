"""Clip and noise in a whole run: the noise that was promised, the budget that ends it."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import Federation, Mean, NumpyClient, Task, Update
from polypfed.backends import Local
from polypfed.core.messages import Reply
from polypfed.privacy.dp import AdaptiveNorm
from polypfed.privacy.errors import IncompatiblePrivacy
from polypfed.privacy.ledger import Ledger
from polypfed.privacy.modes import stages
from polypfed.privacy.stage import Clip, Noise, RandomK, Stage, TopK
from polypfed.strategies import FedAvg
from tests.problems import Quadratic, Scripted, absent, bits

pytest.importorskip("dp_accounting")

EVEN = FedAvg(reducer=Mean("uniform"))
MOVING = Clip(adaptive=AdaptiveNorm(multiplier=0.2, planned=4, initial=10.0))
FREE = Ledger(epsilon=math.inf, delta=1e-5)


def clients(size: int = 4, count: int = 4) -> list[NumpyClient]:
    return [NumpyClient(f"s{i}", Quadratic(1.0, float(i)), np.zeros(size), lr=0.1, steps=2) for i in range(count)]


def run(rounds: int, line: tuple[Stage, ...], size: int = 4, **settings: Any) -> Any:
    fed = Federation(clients=clients(size), strategy=EVEN, stages=line, **({"budget": FREE} | settings))
    return fed.run(rounds, Local())


@pytest.mark.parametrize("where", ["site", "server"])
def test_the_noise_of_the_mean_has_the_promised_deviation(where: Any) -> None:
    """z C / m at the server, z C / sqrt(m) if each of the m sites adds its own."""
    size, z, norm = 40_000, 0.5, 2.0
    noisy = run(1, stages("dp", norm=norm, multiplier=z, where=where), size).model
    clean = run(1, (Clip(norm=norm),), size, budget=None).model
    found = float(np.std(noisy - clean))
    wanted = z * norm / (4 if where == "server" else math.sqrt(4))
    assert found == pytest.approx(wanted, abs=4 * wanted / math.sqrt(2 * size))


def test_clipping_alone_is_exact() -> None:
    """Every delta is clipped to norm C: the mean of the unit vectors times C."""
    model = run(1, (Clip(norm=0.01),), budget=None).model
    deltas = [np.full(4, 0.19 * i) for i in range(4)]
    wanted = np.mean([d * min(1, 0.01 / max(np.linalg.norm(d), 1e-9)) for d in deltas], axis=0)
    np.testing.assert_allclose(model, wanted, rtol=1e-5)


def test_a_run_ends_before_it_overspends(tmp_path: Path) -> None:
    budget = Ledger(epsilon=5.0, delta=1e-5)
    fed = Federation(clients=clients(), strategy=EVEN, stages=stages("dp", multiplier=4.0), budget=budget)
    history = fed.run(100, Local(), tmp_path)
    spent = history.values("epsilon")
    allowed = budget.affordable(4.0)
    assert len(spent) == allowed
    assert spent[allowed] == pytest.approx(budget.charged(4.0, releases=allowed).spent)
    assert spent[allowed] <= 5.0 < budget.charged(4.0, releases=allowed + 1).spent
    assert [f.reason for f in history.failures] == ["budget"]
    again = fed.resume(tmp_path, 100, Local())
    assert len(again.values("epsilon")) == allowed


def test_noise_is_new_unless_it_is_asked_to_be_seeded() -> None:
    line = stages("dp")
    assert bits(run(2, line)) != bits(run(2, line))
    assert bits(run(2, line, seeded_noise=True)) == bits(run(2, line, seeded_noise=True))


@pytest.mark.parametrize("stage", [RandomK(share=0.25), TopK(share=0.25, explore=0.5)])
def test_leaving_values_out_sends_fewer_bytes_and_reaches_the_same_model(stage: Stage) -> None:
    """What waits at a site is sent later and in one piece, so local steps must be small beside the wait."""

    def train(line: tuple[Stage, ...]) -> Any:
        slow = [replace(client, lr=0.01) for client in clients(40)]
        return Federation(clients=slow, strategy=EVEN, stages=line, evaluate="off").run(400, Local())

    sparse, full = train((stage,)), train(())
    assert sparse.values("bytes_up")[1] < 0.4 * full.values("bytes_up")[1]
    assert full.model == pytest.approx([1.5] * 40, abs=1e-3)
    assert sparse.model == pytest.approx([1.5] * 40, abs=0.05)


def test_every_attempt_at_a_round_is_charged() -> None:
    """Sites answer an attempt that is then abandoned, and each answer is a release."""
    tries: list[int] = []

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        tries.append(task.round)
        yield absent(name, task) if len(tries) <= 4 else reply  # the first attempt of round 1

    fed = Federation(clients=clients(), strategy=EVEN, stages=stages("dp", where="site"), budget=FREE)
    spent = fed.run(1, Scripted(script)).values("epsilon")
    assert spent[1] == pytest.approx(FREE.charged(1.0, releases=2).spent)


def test_the_norm_moves_and_only_then_sites_say_whether_they_were_clipped() -> None:
    seen: list[set[str]] = []

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        assert isinstance(reply, Update)
        seen.append(set(reply.vectors))
        yield reply

    def train(line: tuple[Stage, ...]) -> Any:
        seen.clear()
        fed = Federation(clients=clients(), strategy=EVEN, stages=line, budget=FREE, seeded_noise=True)
        return fed.run(3, Scripted(script))

    train(stages("dp"))
    assert {frozenset(names) for names in seen} == {frozenset({"sent"})}
    train((MOVING, Noise(multiplier=0.2, clip=MOVING)))
    assert {frozenset(names) for names in seen} == {frozenset({"sent", "unclipped"})}


def test_refused_at_construction() -> None:
    for settings, words in (
        ({"strategy": FedAvg()}, "weights by examples"),
        ({"budget": None}, "without a budget"),
        ({"stages": (MOVING, Noise(multiplier=0.2, where="site", clip=MOVING))}, "would leave in clear"),
        ({"evaluate": "matrix"}, "cross-site matrix"),
    ):
        with pytest.raises(IncompatiblePrivacy, match=words):
            Federation(**({"clients": clients(), "strategy": EVEN, "stages": stages("dp"), "budget": FREE} | settings))
