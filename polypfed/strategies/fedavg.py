"""FedAvg: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017, Alg. 1."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from polypfed.core.model import Vector
from polypfed.core.settings import rate
from polypfed.strategies.base import Averaging, Cohort, State
from polypfed.strategies.registry import Registry


@Registry.add
@dataclass(frozen=True, kw_only=True)
class FedAvg(Averaging):
    """Weighted averaging of local models.

        client   K_i steps  y <- y - lr g_i(y)  from y = x;  send D_i = y - x and n_i
        server   x <- x + eta * sum_S p_i D_i,   p_i = n_i / sum_S n_j

    Args:
        eta: server learning rate; 1 is plain averaging.
        reducer: Mean() gives p_i as above, Mean("uniform") every client that trained the same weight.

    Differs: the paper averages models; averaging deltas with eta = 1 is the same sum.

    Raises:
        ConfigError: eta is not above 0.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        rate(eta=self.eta)

    def step(self, x: Vector, state: State, mean: Mapping[str, Vector], cohort: Cohort) -> tuple[Vector, State]:
        """x + eta * mean delta."""
        return moved(x, self.eta, mean["delta"]), state


def moved(x: Vector, eta: float, direction: Vector) -> Vector:
    """x + eta * direction, in one new vector."""
    out = np.float32(eta) * direction
    out += x
    return out
