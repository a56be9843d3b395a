"""Client: the only thing a user has to write."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from polypfed.core.errors import ConfigError
from polypfed.core.messages import Evaluation, Task, Update
from polypfed.core.model import ModelSpec, Vector


@runtime_checkable
class Client(Protocol):
    """One site. `fit` trains on the samples its selector kept and returns the weight delta.

    Attributes:
        name: `[A-Za-z0-9][A-Za-z0-9_-]{0,62}`, unique in a federation.
    """

    name: str

    def fit(self, task: Task) -> Update:
        """Train from `task.vectors["model"]`; `Update.vectors["delta"]` = local - global, (P,) float32."""

    def evaluate(self, task: Task) -> Evaluation:
        """Metrics of `task.vectors["model"]` on this site's own validation set."""

    def state(self) -> bytes:
        """What must survive a restart: control variates, personal layers. Empty if nothing is kept."""

    def restore(self, state: bytes) -> None:
        """The inverse of `state`; `b""` is the state of a client that has not yet trained."""


@runtime_checkable
class HasInitial(Protocol):
    """A client that can propose the model to start from."""

    def initial(self) -> tuple[ModelSpec, Vector]:
        """The layout and the starting model, (P,) float32."""


def agreed(clients: Sequence[Client]) -> tuple[ModelSpec, Vector]:
    """The initial model that all clients with `initial` propose.

    Raises:
        ConfigError: two proposals differ, or there is none.
    """
    first: tuple[ModelSpec, Vector] | None = None
    asked = set[int]()
    for client in clients:
        resident = getattr(client, "resident", None)  # a model that several clients share is asked once
        if not isinstance(client, HasInitial) or id(resident) in asked:
            continue
        if resident is not None:
            asked.add(id(resident))
        spec, x = client.initial()
        if first is None:
            first = spec, x.copy()
        elif spec != first[0] or not np.array_equal(x, first[1]):
            raise ConfigError(
                "proposes another model than the first site", where=client.name, remedy="Give Federation(initial=...)"
            )
    if first is None:
        raise ConfigError("no client has initial()", where="initial", remedy="Give Federation(initial=(spec, x))")
    return first
