"""What all programs of this folder share and none of them counts: a small problem, its data at a site, its loss.

Least squares of 5 weights on 40 examples, with other inputs and another truth at each site.
"""

from pathlib import Path

import numpy as np
import torch

SITES, ROUNDS, STEPS, LR = 2, 8, 10, 0.05


class Net(torch.nn.Linear):
    """5 weights, which begin as 0."""

    def __init__(self) -> None:
        super().__init__(5, 1, bias=False)
        torch.nn.init.zeros_(self.weight)


def data(site: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(40, 5) and (40, 1) float32 of site 0, 1, ..."""
    rng = np.random.default_rng(site)
    x = rng.normal(size=(40, 5)) * rng.uniform(0.3, 2, 5)
    y = x @ rng.normal(site, 1, (5, 1))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


loss = torch.nn.functional.mse_loss


def score(weights: torch.Tensor | np.ndarray) -> float:
    """The loss over the data of all sites."""
    weights = torch.as_tensor(np.array(weights, np.float32)).reshape(5, 1)
    return float(np.mean([loss(x @ weights, y) for x, y in map(data, range(SITES))]))


def stored(folder: str) -> torch.Tensor:
    """The weights in the file that NVFlare leaves below `folder`; with its SCAFFOLD there are NumPy arrays beside."""
    (file,) = Path(folder).rglob("FL_global_model.pt")
    arrays = [np._core.multiarray._reconstruct, np.ndarray, np.dtype, np.dtypes.Float32DType]
    with torch.serialization.safe_globals(arrays):
        return torch.load(file, weights_only=True)["model"]["weight"]  # noqa: TID251 - weights only, made just now
