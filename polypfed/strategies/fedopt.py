"""FedAdagrad, FedAdam, FedYogi: Reddi et al., Adaptive Federated Optimization, 2021, Alg. 2: one box, three lines."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from polypfed.core.model import Vector
from polypfed.core.settings import fraction, rate
from polypfed.strategies.base import Averaging, Cohort, State
from polypfed.strategies.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Adaptive(Averaging, ABC):
    """The box. Subclasses have the line that differs, `second`.

        client   as FedAvg
        server   D = sum_S p_i D_i ;   m <- beta1 m + (1 - beta1) D ;   v <- second(v, D^2)
                 x <- x + eta m / (sqrt(v) + tau)                 m_0 = 0,  v_0 = tau^2,  no bias correction

    Args:
        eta: server learning rate.
        beta1: of the first moment, in [0, 1).
        tau: adaptivity; the larger, the nearer to FedAvgM.

    Differs: a mean weighted by examples, as is usual, where the paper's box has an even one; for that one give
    `reducer=Mean("uniform")`. Buffers are averaged and never pass the optimiser.

    Raises:
        ConfigError: eta or tau is not above 0, or a beta not in [0, 1).
    """

    eta: float = 0.1
    beta1: float = 0.9
    tau: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        rate(eta=self.eta, tau=self.tau)
        fraction(beta1=self.beta1)

    @abstractmethod
    def second(self, v: Vector, square: Vector) -> Vector:
        """The new v; `square` is D^2."""

    def init(self, x: Vector) -> State:
        """m = 0 and v = tau^2, (T,) each."""
        return {"m": np.zeros_like(x), "v": np.full_like(x, self.tau**2)}

    def step(self, x: Vector, state: State, mean: Mapping[str, Vector], cohort: Cohort) -> tuple[Vector, State]:
        """x + eta m / (sqrt(v) + tau) with the new m and v."""
        d = mean["delta"]
        m = np.float32(self.beta1) * state["m"] + np.float32(1 - self.beta1) * d
        v = self.second(state["v"], d * d)
        out = np.sqrt(v)
        out += np.float32(self.tau)
        np.divide(m, out, out=out)
        out *= np.float32(self.eta)
        out += x
        return out, {"m": m, "v": v}


@Registry.add
@dataclass(frozen=True, kw_only=True)
class FedAdagrad(Adaptive):
    """Adagrad on the server:  v <- v + D^2, beta1 = 0; the rest as in the box of this file."""

    beta1: float = 0.0

    def second(self, v: Vector, square: Vector) -> Vector:
        """v + D^2."""
        return v + square


@dataclass(frozen=True, kw_only=True)
class _Decaying(Adaptive):
    """Adds beta2, of the second moment."""

    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(beta2=self.beta2)


@Registry.add
@dataclass(frozen=True, kw_only=True)
class FedAdam(_Decaying):
    """Adam on the server:  v <- beta2 v + (1 - beta2) D^2; the rest as in the box of this file."""

    def second(self, v: Vector, square: Vector) -> Vector:
        """beta2 v + (1 - beta2) D^2."""
        return np.float32(self.beta2) * v + np.float32(1 - self.beta2) * square


@Registry.add
@dataclass(frozen=True, kw_only=True)
class FedYogi(_Decaying):
    """Yogi on the server:  v <- v - (1 - beta2) D^2 sign(v - D^2); the rest as in the box of this file."""

    def second(self, v: Vector, square: Vector) -> Vector:
        """v - (1 - beta2) D^2 sign(v - D^2)."""
        change: Vector = np.float32(1 - self.beta2) * square * np.sign(v - square)
        return v - change
