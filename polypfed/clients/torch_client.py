"""TorchClient: local training of any torch module with any loss."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.optim import Optimizer

from polypfed.clients.flat import FlatModel
from polypfed.clients.isolation import isolated
from polypfed.clients.training import LocalTraining, check_linear, split
from polypfed.core.errors import ConfigError, DataError
from polypfed.core.messages import Evaluation, Task, Update
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.pack import pack_state, unpack_state
from polypfed.core.seeds import generator
from polypfed.strategies.base import Strategy

Batch = Sequence[torch.Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
Evaluate = Callable[[nn.Module, Batch], Mapping[str, float]]
_SGD: MakeOptimizer = partial(torch.optim.SGD, lr=0.1)


@dataclass
class TorchClient:
    """A site that trains `module` on its own arrays.

    Clients given the same module object share it: one model per process, whatever the number of sites. What travels is
    the live float32 state; integer buffers and parameters without gradients stay at home.

    Args:
        name: the site.
        module: the model. Its weights before the first task are what `initial` proposes.
        loss: `loss(module(*inputs), target)` -> scalar; `data` is (*inputs, target).
        data: arrays or tensors of equal first dimension; a batch is the same rows of each.
        optimizer: given the parameters, makes the optimiser; a new one each round.
        epochs: passes over `data` in a round.
        batch: examples per step; the last batches of an epoch are evened out.
        validation: like `data`, for `evaluate`.
        evaluate_with: `(module, validation) -> metrics`, module in evaluation mode; by default the mean loss.
        threads: of torch, while this client works.
        clip: largest norm of a step's gradient; 0 for none.

    Raises:
        ConfigError: a number is out of range. DataError: the arrays differ in length.

    Examples:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> data = np.eye(2, dtype=np.float32), np.ones((2, 1), np.float32)
        >>> client = TorchClient("a", net, nn.functional.mse_loss, data, optimizer=partial(torch.optim.SGD, lr=0.1))
        >>> spec, x = client.initial()
        >>> update = client.fit(Task(1, "fit", {"model": x}, {"seed": 1}))
        >>> update.weight, update.vectors["delta"].shape
        (2, (2,))
    """

    name: str
    module: nn.Module = field(repr=False)
    loss: Callable[..., torch.Tensor]
    data: Sequence[ArrayLike | torch.Tensor] = field(repr=False)
    optimizer: MakeOptimizer = _SGD
    epochs: int = 1
    batch: int = 32
    validation: Sequence[ArrayLike | torch.Tensor] | None = field(default=None, repr=False)
    evaluate_with: Evaluate | None = None
    threads: int = 1
    clip: float = 0.0
    _kept: dict[str, Vector] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for setting in ("epochs", "batch", "threads"):
            value = getattr(self, setting)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{setting} must be a whole number of at least 1, got {value!r}", where=self.name)
        self._flat = FlatModel.of(self.module)
        self._train = _tensors(self.data, f"{self.name}: data")
        self._check = None if self.validation is None else _tensors(self.validation, f"{self.name}: validation")

    @property
    def resident(self) -> FlatModel:
        """The model in this process: one object for all clients of the module."""
        return self._flat

    def initial(self) -> tuple[ModelSpec, Vector]:
        """The layout, and the weights the module had before any site trained on it."""
        return self._flat.spec, self._flat.first()

    def fit(self, task: Task) -> Update:
        """Train for `epochs`; the weight is the number of examples.

        Raises:
            TrainingError: the loss is not finite. LayoutError: the received model does not fit.
        """
        began, cpu = time.perf_counter(), time.process_time()
        self._flat.first()  # remembered before they are overwritten
        with isolated(task.seed, self.threads):
            work = LocalTraining(self._flat, task, self._kept, self.clip, self._whole)
            work.use(self.optimizer(self._flat.learning()))
            self.module.train()
            order, examples = generator(task.seed, "order"), len(self._train[0])
            for _ in range(self.epochs):
                for rows in split(order.permutation(examples), self.batch):
                    index = torch.from_numpy(rows)
                    work.step(self._loss([t.index_select(0, index) for t in self._train]))
            vectors, self._kept = work.finish()
        metrics = {"images": examples, "kept": examples, "loss": work.loss}
        metrics |= {"train_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
        return Update(self.name, task.round, vectors, examples if work.steps else 0, metrics)

    def evaluate(self, task: Task) -> Evaluation:
        """Metrics of the received model on `validation`, else on `data`."""
        data = self._train if self._check is None else self._check
        self._flat.first()
        with isolated(task.seed, self.threads), torch.no_grad():
            self._flat.load(task.vectors["model"])
            self.module.eval()
            metrics = self.evaluate_with(self.module, data) if self.evaluate_with else {"loss": float(self._loss(data))}
        return Evaluation(self.name, task.round, dict(metrics), len(data[0]))

    def state(self) -> bytes:
        """What the strategy's client half keeps, as safetensors."""
        return pack_state(self._kept)

    def restore(self, state: bytes) -> None:
        """The inverse of `state`."""
        self._kept = unpack_state(state)

    def check(self, strategy: Strategy) -> None:
        """Raise a ConfigError if this site cannot train under `strategy`."""
        check_linear(strategy.local_rule(), self.optimizer([nn.Parameter(torch.zeros(1))]), self.clip)

    def _whole(self) -> Iterator[tuple[torch.Tensor, float]]:
        self.module.train()
        for rows in split(np.arange(len(self._train[0])), self.batch):
            index = torch.from_numpy(rows)
            yield self._loss([t.index_select(0, index) for t in self._train]), len(rows)

    def _loss(self, batch: Batch) -> torch.Tensor:
        *inputs, target = batch
        return self.loss(self.module(*inputs), target)

    def __getstate__(self) -> dict[str, Any]:
        """Without the module: the FlatModel carries it, once for all clients pickled together."""
        return {k: v for k, v in self.__dict__.items() if k != "module"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.module = self._flat.module


def _tensors(arrays: Sequence[ArrayLike | torch.Tensor], where: str) -> list[torch.Tensor]:
    tensors = [a if isinstance(a, torch.Tensor) else torch.from_numpy(np.array(a)) for a in arrays]
    if len(tensors) < 2 or len({len(t) for t in tensors}) != 1:
        raise DataError(f"needs inputs and a target of equal length, got {[len(t) for t in tensors]}", where=where)
    if not len(tensors[0]):
        raise DataError("holds no example", where=where)
    return tensors
