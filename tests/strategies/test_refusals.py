"""Settings outside their domain, and what cannot work together: refused at construction or before round 1."""

import math
from dataclasses import dataclass
from typing import Any

import pytest

from polypfed import Federation
from polypfed.backends import Local
from polypfed.core.errors import ConfigError
from polypfed.core.reduce import Mean
from polypfed.federation import Event
from polypfed.strategies import (
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
    Registry,
    Scaffold,
)
from polypfed.strategies.scaffold import ScaffoldRule
from tests.problems import sites

RATES = [0, -1.0, math.nan, math.inf, -math.inf, True, "1", None, 1e-60, 1e60, [1]]
NOT_NEGATIVE = [-1e-9, math.nan, math.inf, False, "0", None]
FRACTIONS = [-0.1, 1, 1.5, math.nan, True, "0.9", None]
COUNTS = [0, -1, 1.0, True, "3", None]
CASES: list[tuple[Any, str, list[Any]]] = [
    *[
        (kind, "eta", RATES)
        for kind in (FedAvg, FedAvgM, FedProx, FedAdagrad, FedAdam, FedYogi, Scaffold, FedNova, FedBuff)
    ],
    *[(kind, "tau", RATES) for kind in (FedAdagrad, FedAdam, FedYogi)],
    *[(kind, "beta1", FRACTIONS) for kind in (FedAdagrad, FedAdam, FedYogi)],
    *[(kind, "beta2", FRACTIONS) for kind in (FedAdam, FedYogi)],
    (FedAvgM, "momentum", FRACTIONS),
    (FedProx, "mu", NOT_NEGATIVE),
    (FedDyn, "alpha", RATES),
    (Ditto, "strength", NOT_NEGATIVE),
    (KeepBest, "tolerance", NOT_NEGATIVE),
    (KeepBest, "veto", [v for v in NOT_NEGATIVE if v is not None]),
    (KeepBest, "metric", ["", "-", 5, None]),
    (FedBuff, "buffer", COUNTS),
    (FedBuff, "max_staleness", [-1, 1.0, True, "3", None]),
    (FedBuff, "spread", NOT_NEGATIVE),
    (Scaffold, "option", ["i", "III", 1, None]),
    *[(kind, "weights", ["uniform", "examples", 3, [1.0]]) for kind in (Scaffold, FedDyn)],
    *[(kind, "inner", [None, "fedavg", FedAvg, FedBuff()]) for kind in (Ditto, KeepBest, FedBN, FedPer)],
    *[(kind, "reducer", [None, "mean", 3, Mean]) for kind in (FedAvg, FedAvgM, FedProx, FedAdam)],
]


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [(k, f, v) for k, f, values in CASES for v in values],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_a_setting_outside_its_domain_is_named(kind: Any, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        kind(**{field: value})


@pytest.mark.parametrize("kind", [Scaffold, FedDyn])
@pytest.mark.parametrize("weight", [0, -1.0, math.nan, "1"])
def test_a_weight_outside_its_domain_is_named(kind: Any, weight: Any) -> None:
    with pytest.raises(ConfigError, match=r"^weights.site-01: "):
        kind(weights={"site-00": 1.0, "site-01": weight})


@Registry.add
@dataclass(frozen=True)
class WantsControls(FedAvg):
    """Its server half asks for what its client half does not send."""

    def step(self, x: Any, state: Any, mean: Any, cohort: Cohort) -> Any:
        return x + mean["delta"] + mean["dc"], state


@Registry.add
@dataclass(frozen=True)
class WantsBroadcast(FedAvg):
    """Its client half asks for what its server half does not broadcast."""

    def local_rule(self) -> Any:
        return ScaffoldRule("II")


ALL = {f"site-{i:02d}": 1.0 for i in range(4)}
ONE_LESS = {name: 1.0 for name in ALL if name != "site-02"}


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (WantsControls(), r"^strategy: step asks for 'dc', .* \['delta'\]. Return it from the local rule's finish"),
        (KeepBest(metric="-gradient_norm", inner=WantsControls()), "step asks for 'dc'"),
        (
            WantsBroadcast(),
            r"^strategy: the local rule asks for 'c', which clients do not get. Return it",
        ),
        (FedAvg(reducer=Mean(ONE_LESS)), r"^weights.site-02: has no weight. Give every client one"),
        (Scaffold(weights=ONE_LESS), r"^weights.site-02: has no weight"),
        (FedDyn(weights=ONE_LESS), r"^weights.site-02: has no weight"),
        (Scaffold(weights=ALL | {"site-99": 1.0}), r"^weights.site-99: is no site. Sites: site-00, "),
        (Ditto(inner=FedDyn(weights=ALL | {"z": 2.0})), r"^weights.z: is no site"),
        (FedBuff(buffer=5), r"^buffer: .* there are 4. Give at most 4"),
        (FedPer(local=("head",)), r"^strategy.local: 'head' fits no part of the model"),
        (FedPer(local=("x",)), r"^strategy.local: no trainable array is left to share"),
        (FedBN(), r"^strategy: the model has no BatchNorm layer"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_cannot_work_is_refused_before_anybody_is_asked(strategy: Any, message: str) -> None:
    events: list[Event] = []
    with pytest.raises(ConfigError, match=message):
        Federation(clients=sites(), strategy=strategy).run(1, Local(), listen=events.append)
    assert events == []


def test_a_class_in_place_of_a_strategy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^strategy: type is no strategy"):
        Federation(clients=sites(), strategy=FedAvg)  # type: ignore[arg-type]
