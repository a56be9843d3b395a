"""Client: the only thing a user has to write; and the shell that runs one, the same on every backend."""

from typing import Protocol, runtime_checkable

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
