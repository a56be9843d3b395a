"""What quadratic federations must come to, written from the papers' boxes in float64 and apart from the package."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed import Federation, NumpyClient
from polypfed.backends import Local
from polypfed.strategies import Strategy

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Bowl:
    """The gradient of 1/2 (x - b)^T A (x - b), A (d, d) symmetric, b (d,)."""

    A: Array
    b: Array

    def __call__(self, x: Any) -> Any:
        return (self.A.astype(np.float32) @ (x - self.b.astype(np.float32))).astype(np.float32)

    def exact(self, x: Array) -> Array:
        return self.A @ (x - self.b)


@dataclass(frozen=True, eq=False)
class Problem:
    """Sites with a loss, a number of local steps and examples each."""

    bowls: tuple[Bowl, ...]
    steps: tuple[int, ...]
    weights: tuple[int, ...]
    lr: float = 0.1

    @property
    def size(self) -> int:
        return len(self.bowls[0].b)

    @property
    def names(self) -> list[str]:
        return [f"s{i}" for i in range(len(self.bowls))]

    def clients(self, **change: Any) -> list[NumpyClient]:
        rows = zip(self.names, self.bowls, self.steps, self.weights, strict=True)
        return [
            NumpyClient(n, b, np.zeros(self.size), **({"lr": self.lr, "steps": k, "weight": w} | change))
            for n, b, k, w in rows
        ]

    def optimum(self, weights: Sequence[float] | None = None) -> Array:
        p = np.ones(len(self.bowls)) if weights is None else np.asarray(weights, float)
        total = sum(w * bowl.A for w, bowl in zip(p, self.bowls, strict=True))
        return np.linalg.solve(total, sum(w * bowl.A @ bowl.b for w, bowl in zip(p, self.bowls, strict=True)))

    def averaging(self, weights: Sequence[float] | None = None, mu: float = 0.0) -> tuple[Array, Array]:
        """One round of FedAvg or FedProx is x - P x + q. A local run ends at y = x - S (x - b), with
        S = (I - (I - lr L)^K) L^-1 A and L = A + mu I; P and q are the means of S and S b.
        """
        w = np.asarray(self.weights if weights is None else weights, float)
        one, pull, push = np.eye(self.size), np.zeros((self.size, self.size)), np.zeros(self.size)
        for p, bowl, k in zip(w / w.sum(), self.bowls, self.steps, strict=True):
            bent = bowl.A + mu * one
            share = (one - np.linalg.matrix_power(one - self.lr * bent, k)) @ np.linalg.solve(bent, bowl.A)
            pull, push = pull + p * share, push + p * share @ bowl.b
        return pull, push

    def fixed_point(self, weights: Sequence[float] | None = None, mu: float = 0.0) -> Array:
        """Where FedAvg and FedProx settle."""
        return np.linalg.solve(*self.averaging(weights, mu))

    def averaged(self, rounds: int, weights: Sequence[float] | None = None, mu: float = 0.0) -> Array:
        """Where FedAvg and FedProx are after so many rounds from 0."""
        away = np.linalg.matrix_power(np.eye(self.size) - self.averaging(weights, mu)[0], rounds)
        end = self.fixed_point(weights, mu)
        return end - away @ end


def line(a: Sequence[float], b: Sequence[float], steps: Sequence[int], weights: Sequence[int], lr: float) -> Problem:
    """Losses a/2 (x - b)^2 of one variable."""
    bowls = tuple(Bowl(np.array([[u]], float), np.array([v], float)) for u, v in zip(a, b, strict=True))
    return Problem(bowls, tuple(steps), tuple(weights), lr)


TWO = line((1, 4), (0, 1), (5, 5), (1, 1), 0.1)
"""The problem of the published check values; its optimum is 0.8."""


def random_problem(seed: int, size: int, sites: int = 5, lr: float = 0.1) -> Problem:
    """Heterogeneous curvatures with eigenvalues in [0.5, 2.5], optima spread by about 1, 1 to 6 steps."""
    rng = np.random.default_rng(seed)
    bowls = []
    for _ in range(sites):
        basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
        bowls.append(Bowl(basis @ np.diag(rng.uniform(0.5, 2.5, size)) @ basis.T, rng.normal(size=size)))
    steps, weights = rng.integers(1, 7, sites), rng.integers(1, 90, sites)
    return Problem(tuple(bowls), tuple(map(int, steps)), tuple(map(int, weights)), lr)


def train(rounds: int, clients: Sequence[Any], strategy: Strategy, **settings: Any) -> Array:
    """The model after so many rounds."""
    fed = Federation(clients=clients, strategy=strategy, **({"evaluate": "off"} | settings))
    model = fed.run(rounds, Local()).model
    assert model is not None
    return model.astype(np.float64)


def scaffold(
    problem: Problem, cohorts: Sequence[Sequence[int]], weights: Array, option: str, eta: float = 1.0
) -> Array:
    """The iterates of the box, (rounds, d): lines 4 to 17, with weights in both lines of the server."""
    pi = weights / weights.sum()
    x, c = np.zeros(problem.size), np.zeros(problem.size)
    own = np.zeros((len(problem.bowls), problem.size))
    path = []
    for cohort in cohorts:
        moves, changes = np.zeros_like(x), np.zeros_like(x)
        for i in cohort:
            y, gradient = x.copy(), problem.bowls[i].exact
            for _ in range(problem.steps[i]):
                y = y - problem.lr * (gradient(y) - own[i] + c)
            plus = gradient(x) if option == "I" else own[i] - c + (x - y) / (problem.steps[i] * problem.lr)
            moves += pi[i] * (y - x)
            changes += pi[i] * (plus - own[i])
            own[i] = plus
        x, c = x + moves / pi[list(cohort)].sum(), c + changes
        path.append(x)
    return np.array(path)


def feddyn(problem: Problem, cohorts: Sequence[Sequence[int]], weights: Array, alpha: float) -> Array:
    """The iterates of the box with local steps in place of exact solutions, (rounds, d)."""
    pi = weights / weights.sum()
    x, h = np.zeros(problem.size), np.zeros(problem.size)
    own = np.zeros((len(problem.bowls), problem.size))
    path = []
    for cohort in cohorts:
        mean = np.zeros_like(x)
        for i in cohort:
            y = x.copy()
            for _ in range(problem.steps[i]):
                y = y - problem.lr * (problem.bowls[i].exact(y) - own[i] + alpha * (y - x))
            own[i] -= alpha * (y - x)
            mean += pi[i] * y
            h = h - alpha * pi[i] * (y - x)
        x = mean / pi[list(cohort)].sum() - h / alpha
        path.append(x)
    return np.array(path)
