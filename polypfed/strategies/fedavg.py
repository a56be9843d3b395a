"""FedAvg: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017, Alg. 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from polypfed.core.model import Vector
from polypfed.core.reduce import Mean
from polypfed.core.settings import positive
from polypfed.strategies.base import Base, Cohort, Registry, State


@Registry.add
@dataclass(frozen=True)
class FedAvg(Base):
    """Weighted averaging of local models.

        client   K_i steps  y <- y - lr g_i(y)  from y = x;  send D_i = y - x and n_i
        server   x <- x + eta * sum_S p_i D_i,   p_i = n_i / sum_S n_j

    Args:
        eta: server learning rate; 1 is plain averaging.
        weights: "examples" is p_i as above, "uniform" gives every client that trained the same weight.
        dtype: of the sum; "float32" is faster for large models and little local work.

    Differs: the paper averages models; averaging deltas with eta = 1 is the same sum.

    Raises:
        ConfigError: eta is not above 0, or weights or dtype is another word.
    """

    eta: float = 1.0
    weights: Literal["examples", "uniform"] = "examples"
    dtype: Literal["float64", "float32"] = "float64"

    def __post_init__(self) -> None:
        positive(eta=self.eta)
        Mean(self.weights, self.dtype)

    @property
    def reducer(self) -> Mean:
        """The mean with these weights and this accumulator."""
        return Mean(self.weights, self.dtype)

    def step(self, x: Vector, state: State, mean: Mapping[str, Vector], cohort: Cohort) -> tuple[Vector, State]:
        """x + eta * mean delta."""
        moved = np.float32(self.eta) * mean["delta"]
        moved += x
        return moved, state
