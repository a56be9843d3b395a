"""Vectorised: many small clients trained as one torch.func program. Opt-in; refuses whom it cannot train alike."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from polypfed.clients.base import Client
from polypfed.clients.isolation import isolated
from polypfed.clients.joint_gradient import JointGradient
from polypfed.clients.joint_training import SGD, JointTraining, Row
from polypfed.clients.site import Site
from polypfed.clients.torch_client import TorchClient
from polypfed.clients.training import split
from polypfed.core.errors import ConfigError
from polypfed.core.messages import Failure, Reply, Task
from polypfed.strategies.registry import Registry

log = logging.getLogger(__name__)

TOGETHER = 16
"""Clients in one program at most: what they hold must stay near the caches."""


class Vectorised:
    """Trains TorchClients that share one module, in one program instead of one after the other.

    A client draws, trains and keeps what it would alone; only the order of additions inside an operation differs, so
    its weights agree within rounding. The same clients in the same round give the same bits again. All must have the
    module, loss, optimiser settings, epochs, batch and number of examples of the first; the module has no running
    statistics and no dropout, the optimiser is SGD without clipping.

    Raises:
        ConfigError: a client cannot be trained so; it says why.
    """

    def __init__(self, clients: Sequence[Client]) -> None:
        self._clients = [_torch_client(client) for client in clients]
        self._strategy: Any = None
        if self._clients:
            first = self._clients[0]
            self.sgd = _sgd(first)
            _check_module(first)
            for client in self._clients[1:]:
                _check_alike(client, first)
            self._gradient = JointGradient(first.module, first.loss)
            _rehearse(self._clients[:2], self._gradient)

    def groups(self, tasks: Mapping[str, Task]) -> list[list[str]]:
        """Names of the sites that answer together, in order of name, at most `TOGETHER` each.

        Raises:
            ConfigError: the strategy gives each site a client of its own kind.
        """
        for task in tasks.values():
            self._check(task.config.get("strategy"))
        names = np.array(sorted(tasks), dtype=object)
        return [list(group) for group in split(names, TOGETHER)]

    def perform(self, sites: Mapping[str, Site], tasks: Mapping[str, Task]) -> Iterator[Reply]:
        """Replies in order of name. A site that cannot go on is a Failure; the others' results do not change by it."""
        rows, failed = [], dict[str, Reply]()
        for name in sorted(tasks):
            ready = sites[name].prepare(tasks[name]) if tasks[name].kind == "fit" else None
            if isinstance(ready, Failure):
                failed[name] = ready
            elif isinstance(ready, TorchClient):
                rows.append(Row(ready, tasks[name]))
        self._train(rows)
        fits = {row.client.name: row.fit for row in rows}
        for name in sorted(tasks):
            yield failed[name] if name in failed else sites[name].perform(tasks[name], fits.get(name))

    def _train(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        try:
            with isolated(0, rows[0].client.threads):
                JointTraining(rows, self._gradient, self.sgd).run()
        except (Exception, SystemExit):
            log.warning("the joint program failed, so its sites train one after another", exc_info=True)
            for row in rows:  # whoever is at fault fails alone
                row.alone = True

    def _check(self, description: Any) -> None:
        if description is None or description == self._strategy:
            return
        first = self._clients[0]
        if Registry.build(description).at_site(first) is not first:
            raise _refusal(first.name, f"{description['name']} trains more at a site than the model it received")
        self._strategy = description


def _refusal(site: str, problem: str) -> ConfigError:
    return ConfigError(f"cannot be vectorised: {problem}", where=site, remedy="Use Local() without vectorised")


def _torch_client(client: Client) -> TorchClient:
    if type(client) is not TorchClient:
        raise _refusal(client.name, f"it is a {type(client).__name__}, not a TorchClient")
    return client


def _sgd(client: TorchClient) -> SGD:
    """The settings of the client's optimiser."""
    optimizer = client.optimizer(client._flat.learning())
    if type(optimizer) is not torch.optim.SGD or len(optimizer.param_groups) != 1:
        raise _refusal(client.name, f"its optimiser is {type(optimizer).__name__}, not one plain SGD")
    group = optimizer.param_groups[0]
    if any(group.get(k) for k in ("dampening", "maximize", "differentiable")):
        raise _refusal(client.name, "its SGD has dampening, or maximises")
    return SGD(float(group["lr"]), float(group["momentum"]), float(group["weight_decay"]), bool(group["nesterov"]))


def _check_module(client: TorchClient) -> None:
    if client.clip:
        raise _refusal(client.name, "it clips gradients")
    for name, module in client.module.named_modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            raise _refusal(client.name, f"{name or 'the module'} keeps running statistics")
        if isinstance(module, _DropoutNd | nn.RNNBase | nn.MultiheadAttention) and _chance(module):
            raise _refusal(client.name, f"{name or 'the module'} draws dropout")
    spec = client._flat.spec
    if spec.size > spec.boundary:
        raise _refusal(client.name, f"the buffer {spec.parts[-1].name} is part of what is averaged")
    if len(client._flat.learning()) < len(spec.parts):
        raise _refusal(client.name, "a parameter was frozen after the first client was made")


def _chance(module: nn.Module) -> float:
    """With which it drops a value."""
    return float(getattr(module, "p", 0.0) or getattr(module, "dropout", 0.0))


def _check_alike(client: TorchClient, first: TorchClient) -> None:
    if client._flat is not first._flat:
        raise _refusal(client.name, f"it does not share the module of {first.name}")
    if client.loss is not first.loss:
        raise _refusal(client.name, f"its loss is not the one of {first.name}")
    own, theirs = _traits(client), _traits(first)
    for what, value in own.items():
        if value != theirs[what]:
            raise _refusal(client.name, f"its {what} is {value}, that of {first.name} is {theirs[what]}")


def _traits(client: TorchClient) -> dict[str, Any]:
    return {
        "number of examples": len(client._train[0]),
        "data": [(tuple(t.shape[1:]), str(t.dtype)) for t in client._train],
        "epochs": client.epochs,
        "batch": client.batch,
        "clip": client.clip,
        "threads": client.threads,
        "optimiser": _sgd(client),
    }


def _rehearse(clients: Sequence[TorchClient], gradient: JointGradient) -> None:
    """One joint gradient against one alone, before anything depends on it."""
    first = clients[0]
    batch = [t[: first.batch] for t in first._train]
    parts = {p.name: t for p, t in zip(first._flat.spec.parts, first._flat.learning(), strict=True)}
    with isolated(0, first.threads):
        first.module.train()
        try:
            alone = torch.autograd.grad(first._loss(batch), list(parts.values()), allow_unused=True)
        except Exception:
            log.warning("%s: a first gradient fails", first.name, exc_info=True)
            return  # its own doing, not the program's: it will fail alone
        try:
            with torch.no_grad():
                stacked = {name: tensor.detach()[None] for name, tensor in parts.items()}
                joint, _ = gradient.recorded(stacked, *[t[None] for t in batch])
        except Exception as error:
            raise _refusal(first.name, f"torch.func does not take the module or the loss ({error})") from error
    _compare(first.name, {n: g[0] for n, g in joint.items()}, dict(zip(parts, alone, strict=True)))


def _compare(site: str, joint: Mapping[str, torch.Tensor], alone: Mapping[str, torch.Tensor | None]) -> None:
    largest = max((float(g.abs().max()) for g in alone.values() if g is not None), default=0.0)
    for name, gradient in alone.items():
        if gradient is None:
            raise _refusal(site, f"{name} has no part in the loss")
        if not torch.allclose(joint[name], gradient, rtol=1e-3, atol=1e-4 * largest):
            raise _refusal(site, f"the joint gradient of {name} is not the one computed alone")
