"""What a federation is compared with: each site alone, and one model on all images, for as many epochs."""

from collections.abc import Mapping, Sequence

from polypfed.clients.base import Client, HasInitial
from polypfed.core.errors import PolypfedError
from polypfed.core.history import Row, mean_rows, row
from polypfed.core.messages import Evaluation, Task, Update
from polypfed.core.model import Vector
from polypfed.core.seeds import derive
from polypfed.federation import Backend, Event, Host, Listener

_LONG = 1e6  # seconds: a baseline is not given up


def alone(
    clients: Sequence[Client], rounds: int, seed: int, backend: Backend, listen: Listener | None = None
) -> dict[str, Vector]:
    """Train every client by itself from its own initial model: the rounds of a federation without the sharing.

    Raises:
        PolypfedError: a client failed; a baseline with a round missing would flatter the federation.
    """
    models = {c.name: c.initial()[1].copy() for c in clients if isinstance(c, HasInitial)}
    assert isinstance(backend, Host)
    backend.host(clients, None)
    try:
        for number in range(1, rounds + 1):
            tasks = {n: Task(number, "fit", {"model": x}, _config(seed, number, n)) for n, x in models.items()}
            for reply in backend.exchange(tasks, _LONG):
                if not isinstance(reply, Update):
                    raise PolypfedError(f"the baseline failed in round {number}: {reply}", where=reply.client)
                models[reply.client] = models[reply.client] + reply.vectors["delta"]
                if listen:
                    listen(Event("fit", number, reply.client, reply))
    finally:
        backend.close()
    return models


def rows(
    learners: Sequence[Client],
    sites: Sequence[Client],
    models: Mapping[str, Vector],
    rounds: int,
    seed: int,
    backend: Backend,
    listen: Listener | None = None,
) -> list[Row]:
    """Train `learners` alone and score each on every site: rows "baseline/NAME/METRIC".

    Args:
        models: by site, what the federation gave it, scored beside them as "baseline/federated/METRIC": the global
            model, or under a personalised strategy the site's own. A site without one is not scored.
    """
    locals_ = {c.name for c in sites}
    trained = alone(learners, rounds, seed, backend, listen)
    vectors = {f"model@local-{n}" if n in locals_ else f"model@{n}": x for n, x in sorted(trained.items())}
    assert isinstance(backend, Host)
    backend.host(sites, None)
    try:
        tasks = {
            n: Task(rounds, "evaluate", {"model": x, **vectors}, _config(seed, rounds, n)) for n, x in models.items()
        }
        replies = {r.client: r for r in backend.exchange(tasks, _LONG) if isinstance(r, Evaluation)}
    finally:
        backend.close()
    scored = [(_renamed(replies[n].metrics), replies[n].weight) for n in sorted(replies)]
    found = [
        row(rounds, name, metric, value)
        for name, (metrics, _) in zip(sorted(replies), scored, strict=True)
        for metric, value in sorted(metrics.items())
    ]
    return found + mean_rows(rounds, scored)


def _renamed(metrics: Mapping[str, float]) -> dict[str, float]:
    """metric@NAME -> baseline/NAME/metric."""
    split = ((key.partition("@"), value) for key, value in metrics.items())
    return {f"baseline/{name or 'federated'}/{metric}": value for (metric, _, name), value in split}


def _config(seed: int, number: int, name: str) -> dict[str, object]:
    return {"seed": derive(seed, "client", number, name), "run": "baseline", "strategy": {"name": "fedavg"}}
