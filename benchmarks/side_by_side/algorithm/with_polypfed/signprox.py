"""A new algorithm in polypfed: y <- y - lr (g + mu (y - x)) at a site; m <- beta m + D, x <- x + eta sign(m)."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from problem import LR, ROUNDS, SITES, STEPS, Net, data, loss, score

import polypfed as pf


class Prox(pf.strategies.PlainRule):
    def __init__(self, mu):
        self.mu = mu

    def begin(self, x, shared, mine):
        self.x = x

    def direction(self, gradient, y):
        return gradient + self.mu * (y - self.x)


@pf.strategies.Registry.add
@dataclass(frozen=True, kw_only=True)
class SignProx(pf.strategies.Averaging):
    mu: float = 0.1
    eta: float = 0.1
    beta: float = 0.9

    def init(self, x):
        return {"m": np.zeros_like(x)}

    def local_rule(self):
        return Prox(self.mu)

    def step(self, x, state, mean, cohort):
        m = np.float32(self.beta) * state["m"] + mean["delta"]
        return x + np.float32(self.eta) * np.sign(m), {"m": m}


net, sgd = Net(), partial(torch.optim.SGD, lr=LR)
clients = [
    pf.clients.TorchClient(f"site-{site}", net, loss, data(site), optimizer=sgd, epochs=STEPS, batch=40)
    for site in range(SITES)
]
history = pf.Federation(clients=clients, strategy=SignProx()).run(ROUNDS, pf.backends.Local())
print("Final", score(history.model))
