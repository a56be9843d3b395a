"""FedAvg: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017, Algorithm 1."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from polypfed.core.model import Vector
from polypfed.strategies.base import Base, Cohort, Registry, State, positive


@Registry.add
@dataclass(frozen=True)
class FedAvg(Base):
    """Weighted averaging of local models.

        client   K_i steps  y <- y - lr g_i(y)  from y = x;  send D_i = y - x and n_i
        server   x <- x + eta * sum_S p_i D_i,   p_i = n_i / sum_S n_j

    Args:
        eta: server learning rate; 1 is plain averaging.

    Differs: the paper averages models; averaging deltas with eta = 1 is the same sum.

    Raises:
        ConfigError: eta is not above 0.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        positive(eta=self.eta)

    def step(self, x: Vector, state: State, mean: Mapping[str, Vector], cohort: Cohort) -> tuple[Vector, State]:
        """x + eta * mean delta."""
        return x + np.float32(self.eta) * mean["delta"], state
