"""FedNova: Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, 2020."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polypfed.core.messages import Update
from polypfed.core.model import Vector
from polypfed.core.reduce import Mean
from polypfed.core.settings import rate
from polypfed.strategies.base import Base, Cohort, LocalRule, PlainRule, State
from polypfed.strategies.fedavg import moved
from polypfed.strategies.registry import Registry


class NovaRule(PlainRule):
    """The client half: plain SGD that reports how much work it was."""

    linear = True

    def finish(self, x: Any, y: Any, steps: int, lr: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """A_i = steps * lr, the sum of the step sizes, (1,)."""
        return {"work": np.full(1, steps * lr, np.float32)}, {}


@dataclass(frozen=True)
class NovaMean(Mean):
    """sum p_i D_i / A_i beside sum p_i A_i: still sums, of deltas that could be divided at the site as well."""

    def scale(self, update: Update) -> float:
        """1 / A_i, for the delta alone; 0 for a client that says it did next to no work."""
        work = float(update.vectors["work"][0])
        return 1 / work if work > 1e-12 else 0.0


@Registry.add
@dataclass(frozen=True, kw_only=True)
class FedNova(Base):
    """Averaging by work done: more local steps make a client's word longer, not louder.

        client   K_i steps  y <- y - lr g_i(y) ;  send D_i, n_i and A_i
        server   x <- x + eta * ( sum_S p_i A_i ) * ( sum_S p_i D_i / A_i )

    A_i is how far the local optimiser goes under the constant gradient 1: lr times the paper's |a_i|_1. It holds for
    momentum and schedules; the common factor lr cancels. With equal steps it is FedAvg.

    Args:
        eta: server learning rate.

    Raises:
        ConfigError: eta is not above 0.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        rate(eta=self.eta)

    @property
    def reducer(self) -> NovaMean:
        """Weighted by examples, deltas divided by their work."""
        return NovaMean()

    def local_rule(self) -> LocalRule:
        """SGD that reports its work."""
        return NovaRule()

    def step(self, x: Vector, state: State, mean: Mapping[str, Vector], cohort: Cohort) -> tuple[Vector, State]:
        """x + eta tau_eff sum p_i d_i."""
        return moved(x, self.eta * float(mean["work"][0]), mean["delta"]), state
