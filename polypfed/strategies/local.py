"""The client half as a client meets it: built from what the task says, kept to the part of the model that travels."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from polypfed.core.model import ModelSpec
from polypfed.strategies.base import LocalRule, PlainRule, wants
from polypfed.strategies.registry import Registry


def rule_of(config: Mapping[str, Any], spec: ModelSpec) -> LocalRule:
    """The client half of the strategy that a task's config names; FedAvg's if it names none.

    Args:
        spec: the layout of the client's whole model.

    Raises:
        ConfigError: the strategy is unknown, or does not fit the model.
    """
    strategy = Registry.build(config.get("strategy", {"name": "fedavg"}))
    rule, wire = strategy.local_rule(), strategy.wire(spec)
    if wire is spec or type(rule) is PlainRule:
        return rule
    return _Partial(rule, places_of(spec, wire)[: wire.boundary])


@lru_cache(maxsize=8)
def places_of(spec: ModelSpec, wire: ModelSpec) -> np.ndarray[Any, Any]:
    """Where the values that travel lie in the whole vector, ascending; one array serves all sites of a process."""
    places = spec.places({part.name for part in wire.parts})
    places.setflags(write=False)
    return places


class _Partial:
    """A rule that sees the shared places of the trainable vector; the others are trained by plain SGD."""

    def __init__(self, rule: LocalRule, places: np.ndarray[Any, Any]) -> None:
        self._rule, self._places = rule, places
        self.linear, self.full_gradient = wants(rule, "linear"), wants(rule, "full_gradient")

    def begin(self, x: Any, shared: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
        whole = {"gradient": shared["gradient"][self._places]} if self.full_gradient else {}
        self._rule.begin(x[self._places], {**shared, **whole}, mine)

    def direction(self, gradient: Any, y: Any) -> Any:
        bent = gradient + 0
        bent[self._places] = self._rule.direction(gradient[self._places], y[self._places])
        return bent

    def finish(self, x: Any, y: Any, steps: int, lr: float) -> tuple[dict[str, Any], dict[str, Any]]:
        return self._rule.finish(x[self._places], y[self._places], steps, lr)
