"""Compare strategies in 20 lines: clients whose data differ, three strategies, rounds until the loss is low."""

import numpy as np

import polypfed as pf

rng = np.random.default_rng(0)


def site(number: int) -> pf.NumpyClient:
    """Least squares on 40 examples of its own kind: |A x - b|^2 / 40, with another A and b at each site."""
    a = rng.normal(size=(40, 5)) * rng.uniform(0.3, 2, 5)
    b = a @ rng.normal(number, 1, 5)
    return pf.NumpyClient(f"site-{number}", lambda x: a.T @ (a @ x - b) / 40, np.zeros(5), lr=0.1, steps=10)


clients = [site(number) for number in range(4)]
for strategy in (pf.strategies.FedAvg(), pf.strategies.Scaffold(), pf.strategies.FedDyn(alpha=0.1)):
    history = pf.Federation(clients=clients, strategy=strategy).run(rounds=100, backend=pf.backends.Local())
    model = history.model.astype(float)
    slope = np.linalg.norm(sum(client.gradient(model) for client in clients) / len(clients))
    print(f"{type(strategy).__name__:10} slope of the common objective where it ends: {slope:.1e}")
