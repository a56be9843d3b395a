"""One fit of a torch model: from the received vector to the delta; the strategy's client half bends every gradient."""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import Optimizer

from polypfed.clients.flat import FlatModel
from polypfed.core.errors import ConfigError, PolypfedError
from polypfed.core.messages import Task
from polypfed.core.model import Vector
from polypfed.strategies.base import LocalRule, PlainRule, wants
from polypfed.strategies.local import rule_of

Whole = Callable[[], Iterator[tuple[torch.Tensor, float]]]


class TrainingError(PolypfedError):
    """Local training cannot go on: its loss is no longer finite."""


class LocalTraining:
    """Local work of one round.

    Args:
        flat: the resident model.
        task: brings "model" (P,), what the strategy broadcasts, and the strategy's name.
        kept: what this client's half of the strategy kept.
        clip: largest norm of a step's gradient, after it was bent; 0 for none.
        whole: yields (loss of a batch, its weight) over all examples, for rules that need the full gradient.
    """

    def __init__(
        self, flat: FlatModel, task: Task, kept: Mapping[str, Vector], clip: float = 0.0, whole: Whole | None = None
    ) -> None:
        self.flat, self.clip, self.kept = flat, clip, kept
        self.x: Vector = task.vectors["model"]
        self.steps, self._losses = 0, 0.0
        self.rule: LocalRule = rule_of(task.config, flat.spec)
        self.plain = type(self.rule) is PlainRule
        flat.load(self.x)
        flat.collect_gradients(flat=not self.plain)  # plain SGD needs no flat gradient, and is quicker without
        shared = {name: vector for name, vector in task.vectors.items() if name != "model"}
        if wants(self.rule, "full_gradient"):
            shared["gradient"] = self._full_gradient(whole)
        self.rule.begin(self.x[flat.spec.trainable], shared, kept)
        self._descend: Callable[[], object]
        self._pace = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def _full_gradient(self, whole: Whole | None) -> Vector:
        """(T,), of the loss over all examples at x; what the passes did to the buffers is undone."""
        assert whole is not None
        total, weights = np.zeros(self.flat.spec.boundary), 0.0
        for loss, weight in whole():
            self.flat.clear_gradients()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            total += weight * self.flat.gradient.astype(np.float64)
            weights += weight
        self.flat.load(self.x)
        return (total / (weights or 1.0)).astype(np.float32)

    def use(self, optimizer: Optimizer) -> None:
        """Step with this optimiser; it was made for `flat.learning()`.

        Raises:
            ConfigError: the strategy reads the sizes of the steps, and this optimiser's are not known.
        """
        check_linear(self.rule, optimizer, self.clip)
        self._descend = stepper(optimizer)
        if not self.plain:
            # A scalar under the constant gradient 1: how far it moves is the sum of the step sizes, momentum included.
            optimizer.add_param_group({"params": [self._pace], "weight_decay": 0.0})

    def step(self, loss: torch.Tensor) -> None:
        """One optimiser step down `loss`.

        Raises:
            TrainingError: the loss is not finite.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise not_finite(value, self.steps + 1)
        self.flat.clear_gradients()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._bend()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.flat.learning(), self.clip)
        self._descend()
        self.steps += 1
        self._losses += value

    def _bend(self) -> None:
        if self.plain:
            return
        gradient = self.flat.gradient
        bent = self.rule.direction(gradient, self.flat.trainable)
        if bent is not gradient:
            np.copyto(gradient, bent)
        self._pace.grad = torch.ones((), dtype=torch.float64)

    @property
    def loss(self) -> float:
        """Mean loss over the steps done."""
        return self._losses / max(self.steps, 1)

    def finish(self) -> tuple[dict[str, Vector], dict[str, Vector]]:
        """(vectors of the Update, what to keep). Without a step the delta and every extra vector are zero."""
        section = self.flat.spec.trainable
        start, end = self.x[section], self.flat.trainable
        if not self.steps:
            extra, _ = self.rule.finish(start, start, 1, 1.0)
            return {n: np.zeros_like(v) for n, v in {"delta": self.x, **extra}.items()}, dict(self.kept)
        lr = 0.0 if self.plain else -float(self._pace.detach()) / self.steps
        extra, kept = self.rule.finish(start, end, self.steps, lr)
        delta = self.flat.values - self.x
        return {"delta": delta, **_owned(extra)}, _owned(kept)


def _owned(vectors: Mapping[str, Vector]) -> dict[str, Vector]:
    """Copies: a rule may hand out the live weights themselves, and the next site trains on those."""
    return {name: np.array(vector, np.float32) for name, vector in vectors.items()}


def not_finite(loss: float, step: int) -> TrainingError:
    """The loss of this step, the first being 1, is no number to go on with."""
    return TrainingError(f"the loss became {loss} in step {step}", remedy="Lower the learning rate or clip")


def stepper(optimizer: Optimizer) -> Callable[[], object]:
    """`optimizer.step`; for plain SGD the same arithmetic without its wrappers, which cost as much as a small step."""
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", True) or getattr(
        optimizer, "_optimizer_step_post_hooks", True
    )
    special = ("momentum", "weight_decay", "maximize", "differentiable", "fused", "foreach")
    if (
        type(optimizer) is not torch.optim.SGD
        or hooks
        or "step" in vars(optimizer)
        or any(group.get(name) for group in optimizer.param_groups for name in special)
    ):
        return optimizer.step

    def descend() -> None:
        with torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.add_(parameter.grad, alpha=-group["lr"])

    return descend


def check_linear(rule: LocalRule, optimizer: Optimizer, clip: float) -> None:
    """Raise a ConfigError if `rule` needs steps that are linear in the gradient and these are not."""
    if wants(rule, "linear") and (clip or not isinstance(optimizer, torch.optim.SGD)):
        found = "gradients are clipped" if clip else f"the optimiser is {type(optimizer).__name__}"
        raise ConfigError(
            f"the strategy needs local SGD without clipping, and {found}",
            where="strategy",
            remedy="Train with SGD and clip = 0; SCAFFOLD's option I works with any optimiser",
        )


def split(order: NDArray[np.intp], batch: int) -> Iterator[NDArray[np.intp]]:
    """Batches of at most `batch`, of nearly equal size: a last batch of one example would spoil BatchNorm.

    >>> [len(part) for part in split(np.arange(17), 8)]
    [6, 6, 5]
    """
    if len(order):
        yield from np.array_split(order, -(-len(order) // batch))
