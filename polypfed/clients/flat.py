"""FlatModel: a torch module whose weights, gradients and BatchNorm statistics are views into flat float32 buffers.

A client then is: copy the received vector in, train, subtract. No state dict is built, and one module serves every
client of a process, one after the other.
"""

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from polypfed.core.errors import LayoutError
from polypfed.core.model import ModelSpec, Vector

Grouping = Callable[[nn.Module], Callable[[str], str]]
_RESIDENT: WeakValueDictionary[int, "FlatModel"] = WeakValueDictionary()


class FlatModel:
    """A module on flat memory. Use `FlatModel.of(module)`: the same module gives the same FlatModel.

    The trainable section holds the parameters that ask for gradients when the FlatModel is made. Parameters that do
    not are constants: they stay outside the layout, as integer buffers do. Float buffers form the second section.

    Args:
        module: the model.
        group: `group(module)` gives the part of the model an array belongs to, by its name; see `ModelSpec.of`.

    Attributes:
        spec: the layout; T = spec.boundary trainable values, P = spec.size.
        values: (P,) float32, the live weights and buffers.
        gradient: (T,) float32, the live gradient once `collect_gradients(True)` was called.

    Raises:
        LayoutError: a trainable parameter or buffer is not float32 on the CPU.
    """

    def __init__(self, module: nn.Module, group: Grouping | None = None) -> None:
        self.module, self._group = module, group
        kept = set(module.state_dict())
        trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
        buffers = {n: b for n, b in module.named_buffers() if n in kept}
        floats = {n: b for n, b in buffers.items() if b.is_floating_point()}
        self._integers = {n: (b, b.clone()) for n, b in buffers.items() if n not in floats}
        for name, tensor in (trainable | floats).items():
            if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
                raise LayoutError(f"is {tensor.dtype} on {tensor.device}, not float32 on the cpu", where=name)
        self.spec = _layout(trainable, buffers, floats, group(module) if group else lambda name: "")
        flat = torch.empty(self.spec.size)
        self._parameters: list[tuple[nn.Parameter, slice]] = []
        for part in self.spec.parts:
            place, tensor = slice(part.start, part.stop), (trainable | floats)[part.name]
            view = flat[place].view(part.shape)
            view.copy_(tensor.detach())
            tensor.data = view
            if isinstance(tensor, nn.Parameter):
                self._parameters.append((tensor, place))
        self._flat = flat
        self._gradient: torch.Tensor | None = None
        self._first: Vector | None = None
        self.values: Vector = flat.numpy()

    @classmethod
    def of(cls, module: nn.Module, group: Grouping | None = None) -> "FlatModel":
        """The FlatModel of `module`, made on first use."""
        flat = _RESIDENT.get(id(module))
        if flat is None:
            flat = _RESIDENT[id(module)] = cls(module, group)
        return flat

    def first(self) -> Vector:
        """A copy of the weights, (P,): those when this was first asked, however much was trained on it since."""
        if self._first is None:
            self._first = self.values.copy()
        return self._first.copy()

    def load(self, vector: Vector) -> None:
        """Copy `vector` (P,) in; integer buffers go back to what they were at first, so that no client inherits them.

        Raises:
            LayoutError: the vector is not float32 of shape (P,).
        """
        if vector.dtype != np.float32 or vector.shape != (self.spec.size,):
            raise LayoutError(f"the vector is {vector.dtype}{vector.shape}, not float32({self.spec.size},)")
        np.copyto(self.values, vector)
        for live, first in self._integers.values():
            live.copy_(first)

    @property
    def trainable(self) -> Vector:
        """(T,) view of the live weights."""
        return self.values[self.spec.trainable]

    @property
    def gradient(self) -> NDArray[np.float32]:
        """(T,) view of the live gradient; zero where a parameter is frozen."""
        if self._gradient is None:
            raise LayoutError("gradients are not collected", where="gradient", remedy="Call collect_gradients(True)")
        gradient: NDArray[np.float32] = self._gradient.numpy()
        return gradient

    def collect_gradients(self, flat: bool) -> None:
        """Clear all gradients and decide where the next ones go.

        Args:
            flat: into one flat buffer, which a strategy's client half needs. Else autograd hands over its own
                tensors, which for large models saves a pass over memory.
        """
        if flat and self._gradient is None:
            self._gradient = torch.zeros(self.spec.boundary)
        if not flat:
            self._gradient = None
        elif self._gradient is not None:
            self._gradient.zero_()
        for parameter, place in self._parameters:
            parameter.grad = None
            if self._gradient is not None and parameter.requires_grad:
                parameter.grad = self._gradient[place].view(parameter.shape)

    def clear_gradients(self) -> None:
        """Zero, before the next backward pass; keeps the mode."""
        if self._gradient is not None:
            self._gradient.zero_()
        else:
            for parameter, _ in self._parameters:
                parameter.grad = None

    def learning(self) -> list[nn.Parameter]:
        """The parameters that ask for gradients now."""
        return [p for p, _ in self._parameters if p.requires_grad]

    def __getstate__(self) -> dict[str, Any]:
        """The module with weights of its own: pickled as views, each would drag the whole buffer along."""
        clean = copy.deepcopy(self.module)
        for tensor in [*clean.parameters(), *clean.buffers()]:
            tensor.data = tensor.data.clone()
            tensor.grad = None
        return {"module": clean, "group": self._group, "first": self._first}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["module"], state["group"])  # type: ignore[misc]  # views cannot travel, so it is made anew
        self._first = state["first"]
        _RESIDENT[id(self.module)] = self


def _layout(
    trainable: dict[str, nn.Parameter],
    buffers: dict[str, torch.Tensor],
    floats: dict[str, torch.Tensor],
    group: Callable[[str], str],
) -> ModelSpec:
    arrays = {n: t.detach().numpy() for n, t in (trainable | buffers).items()}
    return ModelSpec.of(arrays, buffers=floats, group=group)
