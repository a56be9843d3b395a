"""Three strategies in polypfed."""

from functools import partial

import torch
from problem import LR, ROUNDS, SITES, STEPS, Net, data, loss, score

import polypfed as pf

net, sgd = Net(), partial(torch.optim.SGD, lr=LR)
clients = [
    pf.clients.TorchClient(f"site-{site}", net, loss, data(site), optimizer=sgd, epochs=STEPS, batch=40)
    for site in range(SITES)
]
for strategy in (pf.strategies.FedAvg(), pf.strategies.FedAdam(), pf.strategies.Scaffold()):
    history = pf.Federation(clients=clients, strategy=strategy).run(ROUNDS, pf.backends.Local())
    print(type(strategy).__name__, score(history.model))
