"""The contract between the round engine and a federated algorithm: a server half and a client half, both pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np

from polypfed.core.errors import ConfigError
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.reduce import Mean, Reducer

if TYPE_CHECKING:
    from polypfed.clients.base import Client

State = Mapping[str, Any]
"""Vectors and floats: everything a resume needs."""

Scores = Mapping[str, tuple[Mapping[str, float], int]]
"""By site: the metrics of a model on its validation examples, and how many those are."""

A = TypeVar("A")


@dataclass(frozen=True)
class Cohort:
    """Who counted in a round: accepted clients in order of name, the examples each trained on, and N."""

    round: int
    clients: tuple[str, ...]
    weights: tuple[int, ...]
    population: int


class LocalRule(Protocol):
    """The client half: plain arithmetic on flat trainable vectors (T,), so numpy and torch work alike.

    Two attributes are read where a rule has them, see `wants`:
        linear: it reads the sizes of the local steps, so these must be linear in the gradient: SGD, no clipping.
        full_gradient: `begin` needs the gradient of the client's whole loss at x as `shared["gradient"]`.
    """

    def begin(self, x: Any, shared: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
        """Before local training. x: the global model; shared: broadcast vectors; mine: what this client kept."""

    def direction(self, gradient: Any, y: Any) -> Any:
        """Bend one local step's gradient at the local model y; returns `gradient` itself for plain SGD."""

    def finish(self, x: Any, y: Any, steps: int, lr: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """After `steps` steps whose sizes sum to steps * lr: (extra update vectors, what to keep)."""


class Strategy(Protocol):
    """The server half: a frozen dataclass of hyper-parameters; state in, state out; nothing hides on `self`.

    `Base` has all of it but `step`.
    """

    @property
    def reducer(self) -> Reducer:
        """How updates become one."""

    def init(self, x: Vector) -> State:
        """The state before round 1; x: trainable part of the global model, (T,)."""

    def broadcast(self, x: Vector, state: State) -> Mapping[str, Vector]:
        """What clients get beside the model, each (T,)."""

    def local_rule(self) -> LocalRule:
        """A fresh client half."""

    def step(self, x: Vector, state: State, mean: Mapping[str, Vector], cohort: Cohort) -> tuple[Vector, State]:
        """One server step; mean: one vector per key of Update.vectors, trainable part, (T,). Inputs are not changed."""

    def check(self, spec: ModelSpec, sites: Sequence[str], asked: int) -> None:
        """Before round 1. spec: the whole model; asked: how many of `sites` are asked in a round.

        Raises:
            ConfigError: the strategy cannot work with these.
        """

    def wire(self, spec: ModelSpec) -> ModelSpec:
        """The part of the model that travels; the rest stays at each site."""

    def at_site(self, client: "Client") -> "Client":
        """The client as this strategy needs it: one that keeps parts of the model, or trains a second one."""

    def keeps(self, before: Scores, after: Scores) -> bool:
        """Does the new model stay? If not, the round is rolled back. Asked after each evaluation from round 1 on."""


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

    def check(self, spec: ModelSpec, sites: Sequence[str], asked: int) -> None:
        """The reducer must get as many updates as it needs, and know the weight of every site."""
        if asked < self.reducer.least:
            raise ConfigError(
                f"{type(self.reducer).__name__} needs at least {self.reducer.least} updates, {asked} sites are asked",
                where="reducer",
                remedy="Ask more sites in a round, or choose another reducer",
            )
        weight = getattr(self.reducer, "weight", None)
        if weight is not None:
            for site in sites:
                weight(site, 1)

    def wire(self, spec: ModelSpec) -> ModelSpec:
        """The whole model."""
        return spec

    def at_site(self, client: "Client") -> "Client":
        """The client itself."""
        return client

    def keeps(self, before: Scores, after: Scores) -> bool:
        """Yes."""
        return True


@dataclass(frozen=True, kw_only=True)
class Averaging(Base):
    """Base of the strategies that leave it to the user how updates become one.

    Args:
        reducer: Mean, or a rule that withstands bad updates.

    Raises:
        ConfigError: it is no reducer.
    """

    reducer: Reducer = Mean()

    def __post_init__(self) -> None:
        if isinstance(self.reducer, type) or not callable(getattr(self.reducer, "start", None)):
            raise ConfigError(f"{self.reducer!r} is no reducer", where="reducer", remedy="Use Mean(), Median(), ...")


@dataclass(frozen=True, kw_only=True)
class Wrapper(Base):
    """Base of the strategies that change one thing about another one.

    Args:
        inner: the strategy that does the rest.

    Raises:
        ConfigError: it is no strategy, or an asynchronous one.
    """

    inner: Strategy

    def __post_init__(self) -> None:
        if isinstance(self.inner, type) or not callable(getattr(self.inner, "step", None)):
            raise ConfigError(f"{self.inner!r} is no strategy", where="inner", remedy="Use FedAvg(), FedAdam(), ...")
        if getattr(self.inner, "asynchronous", False):
            raise ConfigError(f"{self.inner!r} is asynchronous: its rounds have no common start", where="inner")

    @property
    def reducer(self) -> Reducer:
        """The inner one's."""
        return self.inner.reducer

    def init(self, x: Vector) -> State:
        """The inner one's."""
        return self.inner.init(x)

    def broadcast(self, x: Vector, state: State) -> Mapping[str, Vector]:
        """The inner one's."""
        return self.inner.broadcast(x, state)

    def local_rule(self) -> LocalRule:
        """The inner one's."""
        return self.inner.local_rule()

    def step(self, x: Vector, state: State, mean: Mapping[str, Vector], cohort: Cohort) -> tuple[Vector, State]:
        """The inner one's."""
        return self.inner.step(x, state, mean, cohort)

    def check(self, spec: ModelSpec, sites: Sequence[str], asked: int) -> None:
        """The inner one's."""
        self.inner.check(spec, sites, asked)

    def wire(self, spec: ModelSpec) -> ModelSpec:
        """The inner one's."""
        return self.inner.wire(spec)

    def at_site(self, client: "Client") -> "Client":
        """The inner one's."""
        return self.inner.at_site(client)

    def keeps(self, before: Scores, after: Scores) -> bool:
        """The inner one's."""
        return self.inner.keeps(before, after)


def nested(strategy: Strategy) -> Iterator[Strategy]:
    """The strategy and those it wraps, the outermost first."""
    yield strategy
    if isinstance(strategy, Wrapper):
        yield from nested(strategy.inner)


def wants(rule: LocalRule, what: Literal["linear", "full_gradient"]) -> bool:
    """Does the rule ask for this? One that does not speak of it does not."""
    return bool(getattr(rule, what, False))


def uploads(strategy: Strategy, boundary: int) -> dict[str, int]:
    """The extra vectors a client sends under `strategy` and their lengths, found by running its rule on zeros."""
    return {name: int(np.size(vector)) for name, vector in _dry_run(strategy, boundary)[0].items()}


def keeps_nothing(strategy: Strategy) -> bool:
    """Does its client half keep nothing between rounds, so that a site may lose its folder and go on?"""
    return not _dry_run(strategy, 2)[1]


def _dry_run(strategy: Strategy, boundary: int) -> tuple[dict[str, Any], dict[str, Any]]:
    x = np.zeros(boundary, np.float32)
    rule = strategy.local_rule()
    shared = {"gradient": x} if wants(rule, "full_gradient") else {}
    rule.begin(x, {**strategy.broadcast(x, strategy.init(x)), **shared}, {})
    return rule.finish(x, x, 1, 1.0)


def rehearse(strategy: Strategy, sites: Sequence[str]) -> None:
    """Run one server step on zeros.

    Raises:
        ConfigError: `step` asks for a vector that the client half does not send, or that for one not broadcast.
    """
    x = np.zeros(2, np.float32)
    try:
        sent = {name: np.zeros(length, np.float32) for name, length in uploads(strategy, 2).items()}
    except KeyError as error:
        raise ConfigError(
            f"the local rule asks for {error}, which clients do not get",
            where="strategy",
            remedy="Return it from broadcast",
        ) from None
    cohort = Cohort(1, tuple(sites), (1,) * len(sites), len(sites))
    try:
        strategy.step(x, strategy.init(x), {"delta": x, **sent}, cohort)
    except KeyError as error:
        raise ConfigError(
            f"step asks for {error}, which is not among what clients send: {sorted(['delta', *sent])}",
            where="strategy",
            remedy="Return it from the local rule's finish",
        ) from None
