"""Your own model: any torch module and loss. Here torchvision's SqueezeNet, built offline, classifies two colours."""

from functools import partial

import numpy as np
import torch
from torchvision.models import squeezenet1_1

import polypfed as pf
from polypfed.clients import TorchClient

torch.manual_seed(0)
net = squeezenet1_1(weights=None, num_classes=2)


def images(seed: int, count: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """(count, 3, 32, 32) float32 in which class 1 is redder, and (count,) int64."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    pixels = rng.normal(size=(count, 3, 32, 32)).astype(np.float32)
    pixels[:, 0] += 3 * labels[:, None, None]
    return pixels, labels


def accuracy(module: torch.nn.Module, batch: list[torch.Tensor]) -> dict[str, float]:
    pixels, labels = batch
    return {"accuracy": float((module(pixels).argmax(1) == labels).float().mean())}


clients = [
    TorchClient(
        name, net, torch.nn.functional.cross_entropy, images(seed), validation=images(seed + 10), batch=8, epochs=2,
        evaluate_with=accuracy, optimizer=partial(torch.optim.Adam, lr=1e-3),
    )
    for seed, name in enumerate(["north", "south"])
]  # fmt: skip
history = pf.Federation(clients=clients, keep_best="accuracy").run(rounds=4, backend=pf.backends.Local())
print(history.table("accuracy"))
