"""A model of Hugging Face's transformers from its configuration, with random weights: nothing is downloaded.

A small ViT classifies two colours. `TorchClient` wants outputs as tensors, so the logits are unwrapped. Needs
transformers.
"""

from functools import partial

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification

import polypfed as pf

torch.manual_seed(0)
config = ViTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
)


class Logits(torch.nn.Module):
    """transformers' models answer with an object; its logits are (b, labels)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels).logits


def images(seed: int, count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """(count, 3, 32, 32) float32 in which class 1 is redder, and (count,) int64."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    pixels = rng.normal(size=(count, 3, 32, 32)).astype(np.float32)
    pixels[:, 0] += 3 * labels[:, None, None]
    return pixels, labels


net, adam = Logits(ViTForImageClassification(config)), partial(torch.optim.Adam, lr=1e-3)
clients = [
    pf.clients.TorchClient(
        name, net, torch.nn.functional.cross_entropy, images(seed), validation=images(seed + 10), optimizer=adam,
        batch=8, epochs=2,
    )
    for seed, name in enumerate(["north", "south"])
]  # fmt: skip
history = pf.Federation(clients=clients).run(rounds=3, backend=pf.backends.Local())
print(history.table("loss"))
