"""FedDyn: Acar et al., Federated Learning Based on Dynamic Regularization, 2021, Alg. 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polypfed.core.model import Vector
from polypfed.core.settings import rate
from polypfed.strategies.base import Cohort, LocalRule, PlainRule, State
from polypfed.strategies.controlled import Controlled
from polypfed.strategies.registry import Registry


class DynRule(PlainRule):
    """The client half: minimise f_i(y) - <g_i, y> + alpha/2 |y - x|^2 by local steps."""

    def __init__(self, alpha: float) -> None:
        self._alpha = np.float32(alpha)

    def begin(self, x: Any, shared: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
        """g_i as it was kept, 0 at first."""
        self._x, self._g_i = x, mine["g_i"] if "g_i" in mine else 0 * x

    def direction(self, gradient: Any, y: Any) -> Any:
        """gradient - g_i + alpha (y - x)."""
        return gradient - self._g_i + self._alpha * (y - self._x)

    def finish(self, x: Any, y: Any, steps: int, lr: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """g_i <- g_i - alpha (y_i - x); nothing beside the delta is sent."""
        return {}, {"g_i": self._g_i - self._alpha * (y - x)}


@Registry.add
@dataclass(frozen=True, kw_only=True)
class FedDyn(Controlled):
    """A regulariser that each round bends every client's loss until all agree on one minimum.

        client   y_i ~ argmin f_i(y) - <g_i, y> + alpha/2 |y - x|^2 ;  g_i <- g_i - alpha (y_i - x)
        server   h <- h - alpha/N sum_S D_i ;  x <- x + mean_S D_i - h/alpha            h = g_i = 0 at first

    In every round h is the mean of g_i over all N sites. One vector travels each way, as in FedAvg. With fixed
    weights, mean_S and the mean over all sites are weighted by them: the limit is the optimum of that sum.

    Args:
        alpha: strength of the regulariser, above 0. Small alpha with few sites a round makes h/alpha jump.
        weights: of the sites by name, fixed for the run, in both lines of the server; None weighs all alike.

    Differs: the paper minimises exactly; here by the local steps of the client. `weights` is not in the paper.

    Raises:
        ConfigError: alpha or a weight is not above 0, or the weights are not of the sites.
    """

    alpha: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        rate(alpha=self.alpha)

    def init(self, x: Vector) -> State:
        """h = 0, (T,)."""
        return {"h": np.zeros_like(x)}

    def local_rule(self) -> LocalRule:
        """SGD on the regularised loss."""
        return DynRule(self.alpha)

    def step(self, x: Vector, state: State, mean: Mapping[str, Vector], cohort: Cohort) -> tuple[Vector, State]:
        """x + mean delta - h/alpha with the new h."""
        h = state["h"] - np.float32(self.alpha * self.share(cohort)) * mean["delta"]
        return x + mean["delta"] - h / np.float32(self.alpha), {"h": h}
