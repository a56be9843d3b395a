"""A model of timm, by name, with random weights: nothing is downloaded. It classifies two colours. Needs timm."""

from functools import partial

import numpy as np
import timm
import torch

import polypfed as pf

torch.manual_seed(0)
net = timm.create_model("resnet10t", pretrained=False, num_classes=2)


def images(seed: int, count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """(count, 3, 32, 32) float32 in which class 1 is redder, and (count,) int64."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    pixels = rng.normal(size=(count, 3, 32, 32)).astype(np.float32)
    pixels[:, 0] += 3 * labels[:, None, None]
    return pixels, labels


adam = partial(torch.optim.Adam, lr=1e-3)
clients = [
    pf.clients.TorchClient(
        name, net, torch.nn.functional.cross_entropy, images(seed), validation=images(seed + 10), optimizer=adam,
        batch=8, epochs=2,
    )
    for seed, name in enumerate(["north", "south"])
]  # fmt: skip
history = pf.Federation(clients=clients).run(rounds=3, backend=pf.backends.Local())
print(history.table("loss"))
