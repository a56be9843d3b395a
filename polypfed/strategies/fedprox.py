"""FedProx: Li et al., Federated Optimization in Heterogeneous Networks, 2020, Alg. 2."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polypfed.core.model import Vector
from polypfed.core.settings import not_negative, rate
from polypfed.strategies.base import Averaging, Cohort, LocalRule, PlainRule, State
from polypfed.strategies.fedavg import moved
from polypfed.strategies.registry import Registry


class ProxRule(PlainRule):
    """The client half: y <- y - lr (g_i(y) + mu (y - x)); the gradient of mu/2 |y - x|^2 beside the loss."""

    def __init__(self, mu: float) -> None:
        self._mu = np.float32(mu)

    def begin(self, x: Any, shared: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
        """Remember the model received."""
        self._x = x

    def direction(self, gradient: Any, y: Any) -> Any:
        """g + mu (y - x)."""
        pull = y - self._x
        pull *= self._mu
        pull += gradient
        return pull


@Registry.add
@dataclass(frozen=True, kw_only=True)
class FedProx(Averaging):
    """Federated averaging whose clients are held back from drifting away.

        client   y <- y - lr ( g_i(y) + mu (y - x) )
        server   x <- x + eta * sum_S p_i D_i

    Args:
        mu: strength of the proximal term, at least 0; 0 is FedAvg.
        eta: server learning rate.

    Differs: the paper draws clients with probability p_i and averages them evenly; here the draw is even and the
    mean weighted. It does not remove the bias towards clients with more steps: see FedNova.

    Raises:
        ConfigError: mu is below 0, or eta not above 0.
    """

    mu: float = 0.01
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        rate(eta=self.eta)
        not_negative(mu=self.mu)

    def local_rule(self) -> LocalRule:
        """SGD with the proximal term."""
        return ProxRule(self.mu)

    def step(self, x: Vector, state: State, mean: Mapping[str, Vector], cohort: Cohort) -> tuple[Vector, State]:
        """As FedAvg."""
        return moved(x, self.eta, mean["delta"]), state
