from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from polypfed.core.errors import ConfigError
from polypfed.core.reduce import Mean
from polypfed.strategies import Base, Cohort, FedAvg, PlainRule, Registry
from polypfed.strategies.base import uploads


@dataclass(frozen=True)
class Unregistered(Base):
    """A strategy nobody registered."""

    def step(self, x: Any, state: Any, mean: Any, cohort: Cohort) -> Any:
        return x, state


@Registry.add
@dataclass(frozen=True)
class ListSetting(Unregistered):
    """What JSON gives back as a list is built as a tuple, so that strategies stay values."""

    groups: list[str] = field(default_factory=lambda: ["head"])


@Registry.add
class NoDataclass(Unregistered):
    """Its settings cannot be read off."""

    def __init__(self) -> None:
        object.__setattr__(self, "secret", object())

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]


def test_a_description_is_json_and_builds_the_strategy() -> None:
    assert Registry.describe(FedAvg(eta=0.5)) == {
        "name": "fedavg",
        "eta": 0.5,
        "reducer": {"name": "mean", "weights": "examples", "dtype": "float64"},
    }
    assert Registry.build({"name": "fedavg", "eta": 0.5}) == FedAvg(eta=0.5)
    assert Registry.build({"name": "FedAvg"}) == FedAvg()
    Registry.check(FedAvg(eta=0.1))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({}, "no strategy is called ''. Known: .*fedavg"),
        ({"name": "os.system"}, "no strategy is called 'os.system'"),
        ({"name": ["fedavg"]}, "no strategy is called"),
        ({"name": "fedavg", "mu": 1}, "fedavg has no setting 'mu'. It has: .*'eta'"),
        ({"name": "fedavg", "__init__": 1}, "has no setting '__init__'"),
        ({"name": "fedavg", "eta": -1}, "eta: -1 is not a number above 0"),
        ({"name": "fedavg", "eta": {"a": 1}}, "eta: .* is not a number above 0"),
    ],
)
def test_what_cannot_be_built_says_why(description: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Registry.build(description)


@pytest.mark.parametrize("strategy", [Unregistered(), ListSetting(), NoDataclass()])
def test_a_strategy_that_clients_could_not_rebuild_is_refused(strategy: Any) -> None:
    with pytest.raises(ConfigError, match=r"^strategy: "):
        Registry.check(strategy)


def test_the_base_is_a_weighted_mean_without_state() -> None:
    base = Base()
    x = np.ones(3, np.float32)
    assert base.reducer == Mean()
    assert (base.init(x), base.broadcast(x, {})) == ({}, {})
    assert isinstance(base.local_rule(), PlainRule)


def test_the_plain_rule_does_nothing() -> None:
    rule, gradient = PlainRule(), object()
    rule.begin(1, {}, {})
    assert rule.direction(gradient, object()) is gradient
    assert rule.finish(1, 2, 3, 0.1) == ({}, {})


def test_uploads_are_found_by_running_the_rule_on_zeros() -> None:
    assert uploads(FedAvg(), 7) == {}
