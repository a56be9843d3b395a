"""NumpyClient: local SGD on any `gradient(x)`; closed-form problems test every strategy."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polypfed.core.messages import Evaluation, Task, Update
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.pack import pack_state, unpack_state
from polypfed.core.settings import positive, whole
from polypfed.strategies.base import wants
from polypfed.strategies.local import rule_of


@dataclass
class NumpyClient:
    """A site whose loss is known by its gradient.

    Args:
        name: the site.
        gradient: x (T,) float32 -> gradient (T,).
        x0: the model to start from, any shape; flattened to (T,).
        lr: local learning rate.
        steps: local steps in a round.
        weight: examples this site speaks for.
        loss: x -> float, for `evaluate`; without it the metric is the norm of the gradient.

    Examples:
        >>> client = NumpyClient("a", gradient=lambda x: x - 3.0, x0=[0.0], lr=0.5, steps=2)
        >>> spec, x = client.initial()
        >>> client.fit(Task(1, "fit", {"model": x})).vectors["delta"]
        array([2.25], dtype=float32)

    Raises:
        ConfigError: steps is not at least 1, or lr not above 0.
    """

    name: str
    gradient: Callable[[NDArray[np.float32]], ArrayLike]
    x0: ArrayLike
    lr: float = 0.1
    steps: int = 1
    weight: int = 1
    loss: Callable[[NDArray[np.float32]], float] | None = None
    _kept: dict[str, Vector] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        positive(lr=self.lr)
        whole("steps", self.steps, 1)

    def initial(self) -> tuple[ModelSpec, Vector]:
        """The layout of one array "x", and x0."""
        arrays = {"x": np.asarray(self.x0, np.float32).reshape(-1)}
        spec = ModelSpec.of(arrays)
        return spec, spec.pack(arrays)

    def fit(self, task: Task) -> Update:
        """`steps` steps of y <- y - lr * direction(gradient(y), y) from y = x."""
        x, rule = task.vectors["model"], rule_of(task.config, self.initial()[0])
        shared = {k: v for k, v in task.vectors.items() if k != "model"}
        if wants(rule, "full_gradient"):
            shared["gradient"] = np.asarray(self.gradient(x), np.float32).reshape(x.shape)
        rule.begin(x, shared, self._kept)
        y = x.copy()
        for _ in range(self.steps):
            gradient = np.asarray(self.gradient(y), np.float32).reshape(y.shape)
            y = y - np.float32(self.lr) * rule.direction(gradient, y)
        extra, self._kept = rule.finish(x, y, self.steps, self.lr)
        return Update(self.name, task.round, {"delta": y - x, **extra}, self.weight, {"images": self.weight})

    def evaluate(self, task: Task) -> Evaluation:
        """{"loss"} if a loss was given, else {"gradient_norm"}."""
        x = task.vectors["model"]
        if self.loss is not None:
            metrics = {"loss": float(self.loss(x))}
        else:
            metrics = {"gradient_norm": float(np.linalg.norm(np.asarray(self.gradient(x), np.float64)))}
        return Evaluation(self.name, task.round, metrics, self.weight)

    def state(self) -> bytes:
        """What the strategy's client half keeps."""
        return pack_state(self._kept)

    def restore(self, state: bytes) -> None:
        """The inverse of `state`."""
        self._kept = unpack_state(state)
