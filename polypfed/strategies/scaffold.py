"""SCAFFOLD: Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, 2020, Alg. 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from polypfed.core.errors import ConfigError
from polypfed.core.model import Vector
from polypfed.core.settings import rate
from polypfed.strategies.base import Cohort, LocalRule, PlainRule, State
from polypfed.strategies.controlled import Controlled
from polypfed.strategies.fedavg import moved
from polypfed.strategies.registry import Registry

Option = Literal["I", "II"]


class ScaffoldRule(PlainRule):
    """The client half, lines 7 to 14 of the box."""

    def __init__(self, option: Option) -> None:
        self.linear = option == "II"
        self.full_gradient = option == "I"

    def begin(self, x: Any, shared: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
        """c from the server, c_i as it was kept, 0 at first; the gradient at x for option I."""
        self._c_i = mine["c_i"] if "c_i" in mine else 0 * shared["c"]
        self._correction = shared["c"] - self._c_i
        self._gradient = shared["gradient"] if self.full_gradient else None

    def direction(self, gradient: Any, y: Any) -> Any:
        """g - c_i + c."""
        return gradient + self._correction

    def finish(self, x: Any, y: Any, steps: int, lr: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """c_i+ - c_i to the server; c_i+ is kept. steps * lr is A_i, the sum of the step sizes."""
        own = self._gradient if self._gradient is not None else (x - y) / (steps * lr) - self._correction
        return {"dc": own - self._c_i}, {"c_i": own}


@Registry.add
@dataclass(frozen=True, kw_only=True)
class Scaffold(Controlled):
    """Local steps corrected by the difference between the client's own gradient and everybody's.

        client   y <- y - lr ( g_i(y) - c_i + c )                       K_i times
                 I :  c_i+ = gradient of f_i at x, over all its examples
                 II:  c_i+ = c_i - c + (x - y) / A_i                    A_i = sum of the step sizes
                 send D_i and dc_i = c_i+ - c_i ;  keep c_i+
        server   x <- x + eta mean_S D_i ;  c <- c + |S|/N mean_S dc_i      c = c_i = 0 at first

    In every round c is the mean of c_i over all N sites, whoever took part. Unequal numbers of steps, learning-rate
    schedules and momentum are covered by A_i. Twice the bytes of FedAvg travel each way, and a site keeps c_i.

    Args:
        eta: server learning rate.
        option: "II" needs local SGD without gradient clipping; "I" works with any optimiser and costs one more pass.
        weights: of the sites by name, fixed for the run, in both lines of the server; None weighs all alike.

    Differs: `weights` is not in the paper. They must not follow the examples of a round: the limit is the optimum
    of the weights of the controls.

    Raises:
        ConfigError: eta or a weight is not above 0, the option is another word, or the weights are not of the sites.
    """

    eta: float = 1.0
    option: Option = "II"

    def __post_init__(self) -> None:
        super().__post_init__()
        rate(eta=self.eta)
        if self.option not in ("I", "II"):
            raise ConfigError(f"{self.option!r} is not one of I, II", where="option")

    def init(self, x: Vector) -> State:
        """c = 0, (T,)."""
        return {"c": np.zeros_like(x)}

    def broadcast(self, x: Vector, state: State) -> Mapping[str, Vector]:
        """c."""
        return {"c": state["c"]}

    def local_rule(self) -> LocalRule:
        """SGD with control variates."""
        return ScaffoldRule(self.option)

    def step(self, x: Vector, state: State, mean: Mapping[str, Vector], cohort: Cohort) -> tuple[Vector, State]:
        """Lines 16 and 17: x + eta D and c + (share of the cohort) dc."""
        return moved(x, self.eta, mean["delta"]), {"c": moved(state["c"], self.share(cohort), mean["dc"])}
