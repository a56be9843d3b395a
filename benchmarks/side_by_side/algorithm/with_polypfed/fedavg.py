"""FedAvg in polypfed, before the algorithm."""

from functools import partial

import torch
from problem import LR, ROUNDS, SITES, STEPS, Net, data, loss, score

import polypfed as pf

net, sgd = Net(), partial(torch.optim.SGD, lr=LR)
clients = [
    pf.clients.TorchClient(f"site-{site}", net, loss, data(site), optimizer=sgd, epochs=STEPS, batch=40)
    for site in range(SITES)
]
history = pf.Federation(clients=clients, strategy=pf.strategies.FedAvg()).run(ROUNDS, pf.backends.Local())
print("Final", score(history.model))
