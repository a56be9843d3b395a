"""The gradients of several clients at once: one torch.func program over their stacked weights and batches."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

Stacked = Mapping[str, torch.Tensor]
Program = Callable[..., tuple[dict[str, torch.Tensor], torch.Tensor]]

_PROGRAMS = 16  # shapes whose program is kept


class JointGradient:
    """Every client's gradient at its own weights.

    The program vmap(grad(loss)) is recorded once per shape as a list of tensor operations and replayed: most of what
    it costs for a small model is the recording. So the module and the loss must be pure functions of weights and
    batch, in training mode, as they must be for clients that share a module anyway.

    Args:
        module: its parameters are replaced by those given in a call.
        loss: `loss(module(*inputs), target)` -> scalar.
    """

    def __init__(self, module: nn.Module, loss: Callable[..., torch.Tensor]) -> None:
        def one(weights: dict[str, torch.Tensor], *batch: torch.Tensor) -> torch.Tensor:
            *inputs, target = batch
            return loss(functional_call(module, weights, tuple(inputs)), target)

        self.recorded: Program = vmap(grad_and_value(one))
        self._programs: OrderedDict[Any, Program] = OrderedDict()

    def __call__(self, weights: Stacked, batch: Sequence[torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[float]]:
        """Gradients like `weights`, each (K, ...), and K losses; batch: tensors (K, B, ...)."""
        key = tuple((t.shape, t.stride(), t.dtype) for t in (*weights.values(), *batch))
        if key not in self._programs:
            self._programs[key] = make_fx(self.recorded)(dict(weights), *batch).forward
            while len(self._programs) > _PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        gradients, losses = self._programs[key](dict(weights), *batch)
        return gradients, losses.tolist()


def stacked_views(flat: torch.Tensor, places: Mapping[str, tuple[slice, tuple[int, ...]]]) -> dict[str, torch.Tensor]:
    """Views (K, *shape) by name into `flat` (K, T)."""
    return {name: flat[:, place].view(len(flat), *shape) for name, (place, shape) in places.items()}
