"""A site's client and the server's federation in polypfed."""

from functools import partial

import torch
from problem import LR, ROUNDS, STEPS, Net, data, loss

import polypfed as pf


def client(name, base):
    site = ["north", "south"].index(name)
    sgd = partial(torch.optim.SGD, lr=LR)
    return pf.clients.TorchClient(name, Net(), loss, data(site), optimizer=sgd, epochs=STEPS, batch=40)


def federation(sites, base):
    return pf.Federation(initial=client(sites[0], base).initial(), quorum=2), ROUNDS
