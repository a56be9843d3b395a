"""One round of several clients in one program: the same arithmetic as LocalTraining, row by row of one matrix."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from polypfed.clients.joint_gradient import JointGradient, stacked_views
from polypfed.clients.torch_client import TorchClient
from polypfed.clients.training import not_finite, split
from polypfed.core.messages import Task, Update
from polypfed.core.model import Vector
from polypfed.core.seeds import generator
from polypfed.strategies.base import LocalRule, PlainRule, wants
from polypfed.strategies.local import rule_of


@dataclass(frozen=True)
class SGD:
    """Settings of torch.optim.SGD that are understood here."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    @property
    def plain(self) -> bool:
        """A step is lr * gradient."""
        return not self.momentum and not self.weight_decay


@dataclass
class Row:
    """One client's part of the joint work."""

    client: TorchClient
    task: Task
    alone: bool = False  # it trains by itself after all
    error: BaseException | None = None
    steps: int = 0
    losses: float = 0.0
    seconds: tuple[float, float] = (0.0, 0.0)
    finish: Callable[[], dict[str, Vector]] = field(default=dict, repr=False)

    @property
    def x(self) -> Vector:
        """The model received, (T,): nothing else travels."""
        return self.task.vectors["model"]

    def fit(self, task: Task) -> Update:
        """What `client.fit(task)` would have returned; raises what it would have raised."""
        if self.alone:
            return self.client.fit(task)
        if self.error is not None:
            raise self.error
        vectors, examples = self.finish(), len(self.client._train[0])
        metrics = {"images": examples, "kept": examples, "loss": self.losses / max(self.steps, 1)}
        metrics |= {"train_s": self.seconds[0], "cpu_s": self.seconds[1]}
        return Update(self.client.name, task.round, vectors, examples, metrics)

    def attempt(self, work: Callable[..., None], *given: object) -> None:
        """Do this client's own part; if it fails, only this client fails."""
        try:
            if self.error is None:
                work(*given)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - `fit` raises it again, and the site's shell records it
            self.error = error

    def count(self, loss: float) -> None:
        """A step was computed."""
        self.steps += 1
        if not math.isfinite(loss):
            raise not_finite(loss, self.steps)
        self.losses += loss


class JointTraining:
    """Rows of one matrix (K, T): the weights of K clients with equal numbers of examples.

    Args:
        rows: the clients; all have the first one's module, settings and shapes of data.
        gradient: of their module and loss.
    """

    def __init__(self, rows: Sequence[Row], gradient: JointGradient, sgd: SGD) -> None:
        self.rows, self.gradient, self.sgd = rows, gradient, sgd
        first = rows[0].client
        self.epochs, self.batch, self.flat, self.examples = first.epochs, first.batch, first._flat, len(first._train[0])
        size = self.flat.spec.boundary
        places = {p.name: (slice(p.start, p.stop), p.shape) for p in self.flat.spec.parts}
        self._weights = torch.zeros(len(rows), size)
        self._views = stacked_views(self._weights, places)
        self._rules: dict[int, LocalRule] = {}
        for k, row in enumerate(rows):
            row.attempt(self._receive, k, row)
        self._bent = any(type(rule) is not PlainRule for rule in self._rules.values())
        self._whole = any(wants(rule, "full_gradient") for rule in self._rules.values())
        simple = sgd.plain and not self._bent
        self._steps = None if simple and not self._whole else torch.zeros_like(self._weights)
        self._step_views = {} if self._steps is None else stacked_views(self._steps, places)
        self._simple = simple
        self._velocity = torch.zeros_like(self._weights) if sgd.momentum else None
        self._pace = self._pace_velocity = 0.0

    def _receive(self, k: int, row: Row) -> None:
        self.flat.load(row.x)
        self._weights[k].copy_(torch.from_numpy(self.flat.values))
        self._rules[k] = rule_of(row.task.config, self.flat.spec)

    def run(self) -> None:
        """Train; what goes wrong for one row stays with it. Raises what the joint program itself raises."""
        began, cpu = time.perf_counter(), time.process_time()
        self.flat.module.train()
        with torch.no_grad():
            self._begin()
            orders = [generator(row.task.seed, "order") for row in self.rows]
            for _ in range(self.epochs):
                data = self._stacked([order.permutation(self.examples) for order in orders])
                for places in split(np.arange(self.examples), self.batch):
                    if all(row.error for row in self.rows):
                        return
                    self._step([t[:, places[0] : places[-1] + 1] for t in data])
        spent = time.perf_counter() - began, time.process_time() - cpu
        for k, row in enumerate(self.rows):
            row.seconds = spent[0] / len(self.rows), spent[1] / len(self.rows)  # each site's share
            row.finish = partial(self._finish, k)

    def _stacked(self, orders: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """The clients' data, (K, n, ...), each in its own order."""
        indices = [torch.from_numpy(order) for order in orders]
        tensors = zip(*(row.client._train for row in self.rows), strict=True)
        return [torch.stack([t[index] for t, index in zip(ts, indices, strict=True)]) for ts in tensors]

    def _begin(self) -> None:
        gradients = self._full_gradients() if self._whole else None
        for k, row in enumerate(self.rows):
            shared = {name: vector for name, vector in row.task.vectors.items() if name != "model"}
            if gradients is not None:
                shared["gradient"] = gradients[k]
            row.attempt(lambda k, row, shared: self._rules[k].begin(row.x, shared, row.client._kept), k, row, shared)

    def _full_gradients(self) -> np.ndarray:
        """(K, T), of each client's loss over all its examples."""
        assert self._steps is not None
        data = self._stacked([np.arange(self.examples)] * len(self.rows))
        total = torch.zeros(self._weights.shape, dtype=torch.float64)
        for places in split(np.arange(self.examples), self.batch):
            self._collect(self.gradient(self._views, [t[:, places[0] : places[-1] + 1] for t in data])[0])
            total += self._steps.double() * len(places)
        return (total / self.examples).float().numpy()

    def _collect(self, gradients: dict[str, torch.Tensor]) -> None:
        for name, view in self._step_views.items():
            view.copy_(gradients[name])

    def _step(self, batch: Sequence[torch.Tensor]) -> None:
        gradients, losses = self.gradient(self._views, batch)
        for row, loss in zip(self.rows, losses, strict=True):
            row.attempt(row.count, loss)
        if self._simple:
            for name, view in self._views.items():
                view.add_(gradients[name], alpha=-self.sgd.lr)
            return
        assert self._steps is not None
        self._collect(gradients)
        if self._bent:
            for k, row in enumerate(self.rows):
                row.attempt(self._bend, k)
        self._descend(self._steps)

    def _bend(self, k: int) -> None:
        assert self._steps is not None
        gradient = self._steps[k].numpy()
        bent = self._rules[k].direction(gradient, self._weights[k].numpy())
        if bent is not gradient:
            np.copyto(gradient, bent)

    def _descend(self, step: torch.Tensor) -> None:
        """torch.optim.SGD on the whole matrix; beside it a scalar under the constant gradient 1, the step sizes."""
        sgd, velocity = self.sgd, self._velocity
        if sgd.weight_decay:
            step.add_(self._weights, alpha=sgd.weight_decay)
        self._pace_velocity = pace = sgd.momentum * self._pace_velocity + 1.0
        if velocity is not None:
            velocity.mul_(sgd.momentum).add_(step)
            step = step.add_(velocity, alpha=sgd.momentum) if sgd.nesterov else velocity
            pace = 1.0 + sgd.momentum * pace if sgd.nesterov else pace
        self._pace += sgd.lr * pace
        self._weights.add_(step, alpha=-sgd.lr)

    def _finish(self, k: int) -> dict[str, Vector]:
        """The vectors of client k's update; what its rule keeps is kept."""
        row = self.rows[k]
        x, y = row.x, self._weights[k].numpy()
        lr = self._pace / row.steps if self._bent else 0.0
        extra, kept = self._rules[k].finish(x, y, row.steps, lr)
        row.client._kept = kept
        return {"delta": y - x, **{n: np.array(v, np.float32) for n, v in extra.items()}}
