"""Every built-in strategy keeps the contract, and every rule catches a strategy that breaks it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from polypfed.core.reduce import Mean
from polypfed.core.robust import GeometricMedian, Krum, Median, NormClip, TrimmedMean
from polypfed.strategies import (
    Base,
    Cohort,
    Ditto,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBN,
    FedBuff,
    FedDyn,
    FedNova,
    FedPer,
    FedProx,
    FedYogi,
    KeepBest,
    PlainRule,
    Registry,
    Scaffold,
    Strategy,
)
from polypfed.strategies.ditto import Anchored
from polypfed.testing import ContractError, check_strategy

WEIGHTS = {f"site-{i:02d}": 1.0 + 0.5 * i for i in range(6)}
BUILT_IN: list[Strategy] = [
    FedAvg(eta=0.7, reducer=Mean("uniform")),
    FedAvgM(reducer=TrimmedMean()),
    FedAvg(reducer=Krum(f=1)),
    FedAvg(reducer=NormClip()),
    FedProx(mu=0.3),
    FedAdagrad(),
    FedAdam(reducer=Median()),
    FedYogi(reducer=GeometricMedian()),
    Scaffold(),
    Scaffold(option="I", weights=WEIGHTS),
    FedNova(),
    FedDyn(alpha=0.5),
    FedDyn(alpha=0.5, weights=WEIGHTS),
    FedBuff(buffer=3),
    FedBN(inner=Scaffold()),
    FedPer(),
    FedPer(local=("neck", "backbone.1.*"), inner=FedNova()),
    FedPer(inner=FedBN(inner=FedAdam())),
    FedBN(inner=KeepBest(inner=FedPer())),
    Ditto(inner=Scaffold()),
    FedPer(inner=Ditto()),
    KeepBest(inner=FedDyn(alpha=0.5)),
    KeepBest(metric="-loss", veto=0.01, inner=FedBN(inner=Scaffold(option="I"))),
]


@pytest.mark.parametrize("strategy", BUILT_IN, ids=lambda s: type(s).__name__)
def test_the_built_in_strategies_keep_the_contract(strategy: Strategy) -> None:
    check_strategy(strategy)


def test_none_was_forgotten() -> None:
    ours = {n for n in Registry.strategies() if Registry._known[n].__module__.startswith("polypfed.strategies")}
    assert {type(s).__name__.lower() for s in BUILT_IN} == ours - {Anchored.__name__.lower()}


@pytest.mark.parametrize(
    ("strategy", "other"),
    [
        (FedAvgM(momentum=0), FedAvg()),
        (FedProx(mu=0), FedAvg()),
        (FedBN(inner=FedProx(mu=0)), FedBN()),
        (Ditto(inner=FedAvgM()), FedAvgM()),
        (Scaffold(weights=dict.fromkeys(WEIGHTS, 2.5)), Scaffold()),
        (FedDyn(alpha=0.5, weights=dict.fromkeys(WEIGHTS, 2.5)), FedDyn(alpha=0.5)),
    ],
    ids=lambda s: type(s).__name__,
)
def test_what_must_be_equal_is(strategy: Strategy, other: Strategy) -> None:
    check_strategy(strategy, equals=other)


def test_what_is_not_equal_is_told_apart() -> None:
    with pytest.raises(ContractError, match=r"FedProx: .* away from FedAvg \(rule: equal\)"):
        check_strategy(FedProx(mu=0.5), equals=FedAvg())
    with pytest.raises(ContractError, match=r"inf away"):
        check_strategy(FedPer(), equals=FedAvg())


# ------------------------------------------------------------------------------------- strategies that break a rule


@dataclass(frozen=True)
class Broken(Base):
    def step(self, x: Any, state: Any, mean: Any, cohort: Cohort) -> Any:
        return x + mean["delta"], state


class NotRegistered(Broken):
    """Clients could not rebuild it."""


@Registry.add
class Float64State(Broken):
    def init(self, x: Any) -> Any:
        return {"m": np.zeros(x.size)}


@Registry.add
class ListState(Broken):
    def step(self, x: Any, state: Any, mean: Any, cohort: Cohort) -> Any:
        return x + mean["delta"], {"seen": [1, 2]}


@Registry.add
class InPlace(Broken):
    def step(self, x: Any, state: Any, mean: Any, cohort: Cohort) -> Any:
        x += mean["delta"]
        return x, state


@Registry.add
class UnlocksAndWrites(Broken):
    """A read-only view can be had around."""

    def step(self, x: Any, state: Any, mean: Any, cohort: Cohort) -> Any:
        x.setflags(write=True)
        x += mean["delta"]
        return x.copy(), state


@Registry.add
class Float64Model(Broken):
    def step(self, x: Any, state: Any, mean: Any, cohort: Cohort) -> Any:
        return x + 1.0 * mean["delta"].astype(np.float64), state


@Registry.add
class HiddenState(Broken):
    """Momentum on the object, as in T30."""

    def step(self, x: Any, state: Any, mean: Any, cohort: Cohort) -> Any:
        m = 0.9 * getattr(self, "_m", 0 * x) + mean["delta"]
        object.__setattr__(self, "_m", m)
        return x + m.astype(np.float32), state


MEMORY: list[Any] = []


@Registry.add
class GlobalState(Broken):
    def step(self, x: Any, state: Any, mean: Any, cohort: Cohort) -> Any:
        MEMORY.append(1)
        return x + np.float32(1 / len(MEMORY)) * mean["delta"], state


@Registry.add
class Uphill(Broken):
    """T12: the delta taken for a gradient."""

    def step(self, x: Any, state: Any, mean: Any, cohort: Cohort) -> Any:
        return x - mean["delta"], state


@Registry.add
class AsksForMore(Broken):
    def step(self, x: Any, state: Any, mean: Any, cohort: Cohort) -> Any:
        return x + mean["delta"] + mean["dc"], state


@Registry.add
class BroadcastsScalars(Broken):
    def broadcast(self, x: Any, state: Any) -> Any:
        return {"c": np.float32(1)}


class WritesIntoGradient(PlainRule):
    def direction(self, gradient: Any, y: Any) -> Any:
        gradient += 0 * y
        gradient *= 2
        return gradient


class NumpyOnly(PlainRule):
    def direction(self, gradient: Any, y: Any) -> Any:
        return np.clip(gradient.astype(np.float32), -1, 1)


class WidensKept(PlainRule):
    def begin(self, x: Any, shared: Any, mine: Any) -> None:
        assert not mine or mine["g"].dtype == np.float64

    def finish(self, x: Any, y: Any, steps: int, lr: float) -> Any:
        return {"g": (y - x) * 2.0}, {"g": y - x, "note": "text"}


class SendsAtTimes(PlainRule):
    def finish(self, x: Any, y: Any, steps: int, lr: float) -> Any:
        return ({"g": y - x} if np.any(np.asarray(y != x)) else {}), {}


class Counting(PlainRule):
    """Keeps what it did outside of `mine`."""

    rounds = 0

    def direction(self, gradient: Any, y: Any) -> Any:
        Counting.rounds += 1
        return gradient * (1 + 0.001 * Counting.rounds)


def with_rule(name: str, rule: type[PlainRule]) -> type[Broken]:
    return Registry.add(type(name, (Broken,), {"local_rule": lambda self: rule(), "__doc__": rule.__doc__}))


@Registry.add
class CountsIdleSites(Broken):
    """The mean over all weights, idle sites included: T03 and R3."""

    @property
    def reducer(self) -> Any:
        return CountingMean()


@dataclass(frozen=True)
class CountingMean(Mean):
    def start(self, lengths: Any) -> Any:
        inner = super().start(lengths)
        rule_add = inner.add
        counted = [0]

        def add(index: int, update: Any) -> None:
            counted[0] += 1
            rule_add(index, update)

        inner.add = add  # type: ignore[method-assign]
        result = inner.result
        inner.result = lambda: {k: v / np.float32(counted[0]) for k, v in result().items()}  # type: ignore[method-assign]
        return inner


@pytest.mark.parametrize(
    ("strategy", "rule"),
    [
        (NotRegistered(), "registry"),
        (Float64State(), "state"),
        (ListState(), "state"),
        (InPlace(), "state"),
        (UnlocksAndWrites(), "step"),
        (Float64Model(), "step"),
        (HiddenState(), "step"),
        (GlobalState(), "step"),
        (Uphill(), "direction"),
        (AsksForMore(), "state"),
        (BroadcastsScalars(), "sends"),
        (with_rule("Mutating", WritesIntoGradient)(), "arithmetic"),
        (with_rule("Numpyish", NumpyOnly)(), "torch_alike"),
        (with_rule("Widening", WidensKept)(), "arithmetic"),
        (with_rule("AtTimes", SendsAtTimes)(), "state"),
        (with_rule("Outside", Counting)(), "arithmetic"),
        (CountsIdleSites(), "no_work"),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_broken_rule_is_named(strategy: Strategy, rule: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_strategy(strategy)
    assert caught.value.rule == rule, caught.value
    assert isinstance(caught.value, AssertionError)
    assert type(strategy).__name__ in str(caught.value)
