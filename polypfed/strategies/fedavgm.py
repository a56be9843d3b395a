"""FedAvgM: Hsu, Qi, Brown, Measuring the Effects of Non-Identical Data Distribution, 2019, section 4.3."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from polypfed.core.model import Vector
from polypfed.core.settings import fraction, rate
from polypfed.strategies.base import Averaging, Cohort, State
from polypfed.strategies.fedavg import moved
from polypfed.strategies.registry import Registry


@Registry.add
@dataclass(frozen=True, kw_only=True)
class FedAvgM(Averaging):
    """Federated averaging with momentum on the server.

        client   as FedAvg
        server   m <- momentum m + D ;  x <- x + eta m ;   D = sum_S p_i D_i,  m_0 = 0

    It is torch's SGD(lr=eta, momentum=momentum) fed with the pseudo-gradient -D.

    Args:
        eta: server learning rate.
        momentum: beta in the paper, 0 to below 1; 0 with eta 1 is FedAvg.

    Raises:
        ConfigError: eta is not above 0, or momentum not in [0, 1).
    """

    eta: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        rate(eta=self.eta)
        fraction(momentum=self.momentum)

    def init(self, x: Vector) -> State:
        """m = 0, (T,)."""
        return {"m": np.zeros_like(x)}

    def step(self, x: Vector, state: State, mean: Mapping[str, Vector], cohort: Cohort) -> tuple[Vector, State]:
        """x + eta m with the new m."""
        m = np.float32(self.momentum) * state["m"]
        m += mean["delta"]
        return moved(x, self.eta, m), {"m": m}
