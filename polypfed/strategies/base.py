"""The contract between the round engine and a federated algorithm: a server half and a client half, both pure."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Protocol, TypeVar, cast

import numpy as np

from polypfed.core.errors import ConfigError
from polypfed.core.model import Vector
from polypfed.core.reduce import Mean, Reducer

State = Mapping[str, Any]
"""Vectors and floats: everything a resume needs."""

A = TypeVar("A")


@dataclass(frozen=True)
class Cohort:
    """Who counted in a round: accepted clients in order of name, the examples each trained on, and N."""

    round: int
    clients: tuple[str, ...]
    weights: tuple[int, ...]
    population: int


class LocalRule(Protocol):
    """The client half: plain arithmetic on flat trainable vectors (T,), so numpy and torch work alike."""

    def begin(self, x: Any, shared: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
        """Before local training. x: the global model; shared: broadcast vectors; mine: what this client kept."""

    def direction(self, gradient: Any, y: Any) -> Any:
        """Bend one local step's gradient at the local model y; returns `gradient` itself for plain SGD."""

    def finish(self, x: Any, y: Any, steps: int, lr: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """After `steps` steps whose sizes sum to steps * lr: (extra update vectors, what to keep)."""


class Strategy(Protocol):
    """The server half: a frozen dataclass of hyper-parameters; state in, state out; nothing hides on `self`."""

    @property
    def reducer(self) -> Reducer: ...

    def init(self, x: Vector) -> State:
        """The state before round 1; x: trainable part of the global model, (T,)."""

    def broadcast(self, x: Vector, state: State) -> Mapping[str, Vector]:
        """What clients get beside the model, each (T,)."""

    def local_rule(self) -> LocalRule:
        """A fresh client half."""

    def step(self, x: Vector, state: State, mean: Mapping[str, Vector], cohort: Cohort) -> tuple[Vector, State]:
        """One server step; mean: one vector per key of Update.vectors, trainable part, (T,). Inputs are not changed."""


class PlainRule:
    """Local SGD as it is: the client half of FedAvg and of every strategy that only changes the server."""

    def begin(self, x: Any, shared: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
        """Nothing to prepare."""

    def direction(self, gradient: A, y: A) -> A:
        """The gradient itself."""
        return gradient

    def finish(self, x: Any, y: Any, steps: int, lr: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """Nothing beside the delta, nothing to keep."""
        return {}, {}


@dataclass(frozen=True)
class Base:
    """Defaults shared by the built-in strategies: a weighted mean, no state, nothing broadcast, plain local SGD."""

    @property
    def reducer(self) -> Reducer:
        """Mean weighted by examples."""
        return Mean()

    def init(self, x: Vector) -> State:
        """No state."""
        return {}

    def broadcast(self, x: Vector, state: State) -> Mapping[str, Vector]:
        """Nothing beside the model."""
        return {}

    def local_rule(self) -> LocalRule:
        """Plain local SGD."""
        return PlainRule()


def uploads(strategy: Strategy, boundary: int) -> dict[str, int]:
    """The extra vectors a client sends under `strategy` and their lengths, found by running its rule on zeros."""
    x = np.zeros(boundary, np.float32)
    rule = strategy.local_rule()
    rule.begin(x, strategy.broadcast(x, strategy.init(x)), {})
    extra, _ = rule.finish(x, x, 1, 1.0)
    return {name: int(np.size(vector)) for name, vector in extra.items()}


class Registry:
    """Strategies by name: a task carries a name and numbers, never code."""

    _known: ClassVar[dict[str, type]] = {}

    @classmethod
    def add(cls, strategy: type[A]) -> type[A]:
        """Class decorator: make a strategy usable in TOML files and by worker processes."""
        cls._known[strategy.__name__.lower()] = strategy
        return strategy

    @classmethod
    def modules(cls) -> list[str]:
        """Where the known strategies are defined: a worker process imports these to know them too."""
        return sorted({kind.__module__ for kind in cls._known.values()} - {"__main__"})  # spawn imports that one itself

    @classmethod
    def describe(cls, strategy: Strategy) -> dict[str, Any]:
        """The strategy as JSON values; `build` gives it back."""
        return {"name": type(strategy).__name__.lower()} | asdict(cast(Any, strategy))

    @classmethod
    def check(cls, strategy: Strategy) -> None:
        """See that clients can rebuild the strategy from what they are told of it.

        Raises:
            ConfigError: it is not registered, or its settings do not survive JSON.
        """
        try:
            again = cls.build(json.loads(json.dumps(cls.describe(strategy))))
        except TypeError as error:
            raise ConfigError(f"is not a dataclass of plain settings ({error})", where="strategy") from None
        if again != strategy:
            raise ConfigError("cannot be rebuilt from its own description", where="strategy")

    @classmethod
    def build(cls, description: Mapping[str, Any]) -> Strategy:
        """The strategy that `description` names.

        Raises:
            ConfigError: the name or a hyper-parameter is unknown or out of range.
        """
        settings = dict(description)
        name = str(settings.pop("name", "")).lower()
        if name not in cls._known:
            raise ConfigError(
                f"no strategy is called {name!r}", where="strategy", remedy=f"Known: {sorted(cls._known)}"
            )
        kind = cls._known[name]
        allowed = {f.name for f in fields(kind)}
        if unknown := set(settings) - allowed:
            raise ConfigError(
                f"{name} has no setting {sorted(unknown)[0]!r}", where="strategy", remedy=f"It has: {sorted(allowed)}"
            )
        return cast(Strategy, kind(**settings))
