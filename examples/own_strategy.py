"""Add a strategy in 30 lines: the server moves by the sign of the mean delta. Checked by the suite that checks ours."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import polypfed as pf
from polypfed.testing import check_strategy


@pf.strategies.Registry.add
@dataclass(frozen=True, kw_only=True)
class SignStep(pf.strategies.Averaging):
    """signSGD with the mean of the deltas in place of gradients (after Bernstein et al., 2018, algorithm 1).

    client   as FedAvg
    server   x <- x + eta sign(sum_S p_i D_i)
    """

    eta: float = 0.01

    def step(
        self, x: np.ndarray, state: pf.strategies.State, mean: Mapping[str, np.ndarray], cohort: pf.strategies.Cohort
    ) -> tuple[np.ndarray, pf.strategies.State]:
        return x + np.float32(self.eta) * np.sign(mean["delta"]), state


check_strategy(SignStep())
clients = [pf.NumpyClient(name, lambda x, at=at: x - at, [0.0], lr=0.1) for name, at in (("a", 0.5), ("b", 1.5))]
history = pf.Federation(clients=clients, strategy=SignStep(eta=0.1)).run(rounds=30, backend=pf.backends.Local())
print(f"mean of the sites' optima: 1.0, found: {history.model[0]:.1f}")
