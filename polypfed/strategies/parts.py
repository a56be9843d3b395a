"""FedBN and FedPer: parts of the model that never leave their site; an inner strategy shares the rest.

FedBN: Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, 2021.
FedPer: Arivazhagan et al., Federated Learning with Personalization Layers, 2019.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from polypfed.core.errors import ConfigError, LayoutError
from polypfed.core.messages import Evaluation, Task, Update
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.pack import pack_state, unpack_inner, unpack_state
from polypfed.strategies.base import Strategy, Wrapper
from polypfed.strategies.fedavg import FedAvg
from polypfed.strategies.local import places_of
from polypfed.strategies.registry import Registry

if TYPE_CHECKING:
    from polypfed.clients.base import Client


class PartClient:
    """The client half of both: the model it trains is the shared part received, completed by the site's own part.

    The own part starts as the client's `initial` has it, is never sent, and is kept in the client's state.

    Raises:
        ConfigError: the client has no `initial`, so nobody knows what its own part starts from.
    """

    def __init__(self, client: "Client", strategy: "_Parts") -> None:
        initial: Any = getattr(client, "initial", None)
        if initial is None:
            raise ConfigError("has no initial(), which gives the parts that stay at a site", where=client.name)
        spec, x = initial()
        inner: Client = strategy.inner.at_site(client)
        if isinstance(inner, PartClient):  # FedPer(inner=FedBN()): completing the model once does for both
            inner = inner._inner
        self.client, self.name = client, client.name
        self._inner: Client = inner
        self._shared = places_of(spec, strategy.wire(spec))
        self._own = np.delete(np.arange(spec.size), self._shared)
        self._first: Vector = x[self._own].copy()
        self._mine = self._first

    def own(self, x: Vector) -> Vector:
        """The whole model of this site: (P,) from the shared part."""
        full = np.empty(self._own.size + self._shared.size, np.float32)
        full[self._shared], full[self._own] = x, self._mine
        return full

    def fit(self, task: Task) -> Update:
        """Train the whole model; the delta of the shared part is sent, that of the own part is kept."""
        update = self._inner.fit(self._completed(task))
        delta = update.vectors["delta"]
        self._mine = self._mine + delta[self._own]
        return replace(update, vectors={**update.vectors, "delta": delta[self._shared]})

    def evaluate(self, task: Task) -> Evaluation:
        """Metrics of the whole model."""
        return self._inner.evaluate(self._completed(task))

    def state(self) -> bytes:
        """The own part, and the inner client's state."""
        return pack_state({"own": self._mine}, self._inner.state())

    def restore(self, state: bytes) -> None:
        """The inverse of `state`."""
        self._mine = unpack_state(state).get("own", self._first)
        self._inner.restore(unpack_inner(state))

    def _completed(self, task: Task) -> Task:
        return replace(task, vectors={**task.vectors, "model": self.own(task.vectors["model"])})


@dataclass(frozen=True, kw_only=True)
class _Parts(Wrapper, ABC):
    """What FedBN and FedPer have in common."""

    inner: Strategy = FedAvg()

    @abstractmethod
    def names(self, spec: ModelSpec) -> set[str]:
        """The arrays that stay at the site."""

    def wire(self, spec: ModelSpec) -> ModelSpec:
        """The model without them."""
        return self.inner.wire(self._rest(spec))

    def check(self, spec: ModelSpec, sites: Sequence[str], asked: int) -> None:
        """Something must be left to share."""
        self.inner.check(self._rest(spec), sites, asked)

    def at_site(self, client: "Client") -> "Client":
        """The client that completes what it receives."""
        return PartClient(client, self)

    def _rest(self, spec: ModelSpec) -> ModelSpec:
        try:
            return spec.without(self.names(spec))
        except LayoutError as error:
            raise ConfigError(error.problem, where="strategy.local", remedy="Keep less of the model local") from None


def _layer(name: str) -> str:
    """The layer an array belongs to: 0.bn for 0.bn.weight."""
    return name.rpartition(".")[0]


@Registry.add
@dataclass(frozen=True, kw_only=True)
class FedBN(_Parts):
    """Every BatchNorm layer stays at its site: weight, bias and running statistics.

    There is no one global model to score: each site is evaluated with its own layers. A new site starts with the
    initial ones and must adapt before use.

    Args:
        inner: what shares the rest; FedAvg in the paper.

    Raises:
        ConfigError: the model has no BatchNorm, or nothing else.
    """

    def names(self, spec: ModelSpec) -> set[str]:
        """A BatchNorm layer is one with running statistics."""
        layers = {_layer(p.name) for p in spec.parts if p.name.rpartition(".")[2] == "running_mean"}
        found = {p.name for p in spec.parts if _layer(p.name) in layers}
        if not found:
            raise ConfigError("the model has no BatchNorm layer", where="strategy", remedy="Use FedPer, or FedAvg")
        return found


@Registry.add
@dataclass(frozen=True, kw_only=True)
class FedPer(_Parts):
    """Named parts of the model stay at their site, such as the head.

    Args:
        local: groups of the model ("backbone", "neck", "head" for YOLO), or patterns of array names ("classifier.*").
        inner: what shares the rest; FedAvg in the paper.

    Raises:
        ConfigError: no name is given, one fits nothing in the model, or nothing is left to share.
    """

    local: tuple[str, ...] = ("head",)

    def __post_init__(self) -> None:
        super().__post_init__()
        listed = isinstance(self.local, Sequence) and not isinstance(self.local, str)
        if not listed or not self.local or not all(isinstance(name, str) and name for name in self.local):
            raise ConfigError(f"{self.local!r} is not a list of names", where="local", remedy='Such as ("head",)')
        object.__setattr__(self, "local", tuple(self.local))  # a list, as TOML gives it, is no other setting

    def names(self, spec: ModelSpec) -> set[str]:
        """The arrays of the groups, and those the patterns fit."""
        found: set[str] = set()
        for wanted in self.local:
            fits = {p.name for p in spec.parts if p.group == wanted or fnmatchcase(p.name, wanted)}
            if not fits:
                groups = sorted({p.group for p in spec.parts} - {""}) or [p.name for p in spec.parts][:5]
                raise ConfigError(
                    f"{wanted!r} fits no part of the model", where="strategy.local", remedy=f"It has: {groups}"
                )
            found |= fits
        return found
