"""Checks of a strategy in whole runs."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from polypfed.clients.base import Client, agreed
from polypfed.core import checkpoint as checkpoints
from polypfed.core.history import History
from polypfed.core.messages import Failure, Reply, Update
from polypfed.core.model import Vector
from polypfed.federation import Federation
from polypfed.strategies.base import Strategy, uploads
from polypfed.testing.carried import Carried
from polypfed.testing.errors import demand, same

Sites = Callable[[], Sequence[Client]]


def carries(strategy: Strategy, clients: Sites, rounds: int) -> None:
    """Only the declared vectors travel, each of the declared length, and no update is refused."""
    backend = Carried()
    history = _federation(strategy, clients()).run(rounds, backend)
    problem = f"{len(history.failures)} failures, the first: {history.failures[:1]}"
    demand(not [f for f in history.failures if f.reason != "late"], problem)
    spec = strategy.wire(agreed(clients())[0])
    wanted = {"delta": spec.size, **uploads(strategy, spec.boundary)}
    for reply in backend.replies:
        found = {name: vector.size for name, vector in reply.vectors.items()} if isinstance(reply, Update) else wanted
        demand(found == wanted, f"{reply.client} sent {found}, declared are {wanted}")
    for name, task in backend.tasks:
        sizes = {key: vector.size for key, vector in task.vectors.items()}
        ok = sizes.pop("model") == spec.size and set(sizes.values()) <= {spec.boundary}
        demand(ok, f"{name} was sent vectors that are not those of the shared part")


def order(strategy: Strategy, clients: Sites, rounds: int) -> None:
    """Neither the order of the clients nor that of their answers changes a bit."""
    straight = _model(strategy, clients(), rounds)
    other = _model(strategy, [*clients()][::-1], rounds, Carried(backwards=True))
    demand(same(straight, other), "another order of the sites gives other bits")


def no_work(strategy: Strategy, clients: Sites, rounds: int) -> None:
    """A site that had nothing to train on counts as little as one that did not answer."""
    name = sorted(c.name for c in clients())[1]

    def idle(reply: Reply) -> Reply:
        return replace(reply, weight=0) if isinstance(reply, Update) and reply.client == name else reply

    def silent(reply: Reply) -> Reply:
        return Failure(name, reply.round, "lost", "", reply.run) if reply.client == name else reply

    without = [_model(strategy, clients(), rounds, Carried(change)) for change in (idle, silent)]
    demand(same(*without), "a site without examples changes the model")


def empty_rounds(strategy: Strategy, clients: Sites, rounds: int) -> None:
    """If nobody had anything to train on, neither the model nor the state moves."""

    def idle(reply: Reply) -> Reply:
        return replace(reply, weight=0) if isinstance(reply, Update) else reply

    spec, x = agreed(clients())
    wire = strategy.wire(spec)
    start = x if wire is spec else x[spec.places({p.name for p in wire.parts})]
    with tempfile.TemporaryDirectory(prefix="polypfed-") as folder:
        found = _model(strategy, clients(), rounds, Carried(idle), Path(folder))
        now = checkpoints.load(Path(folder) / "checkpoint").state
    demand(same(found, start), "the model moves in a round without examples")
    first = dict(strategy.init(start[wire.trainable]))
    demand(same(dict(now), first), "the state moves in a round without examples")


def resumes(strategy: Strategy, clients: Sites, rounds: int) -> None:
    """A run that was stopped half way goes on to the bits of one that was not, with sites that remember nothing."""
    straight = _federation(strategy, clients()).run(rounds, Carried())
    with tempfile.TemporaryDirectory(prefix="polypfed-") as folder:
        _federation(strategy, clients()).run(rounds // 2, Carried(), folder)
        broken = _federation(strategy, clients()).resume(folder, rounds, Carried())
    demand(same(broken.model, straight.model), "other bits than the run without a break")
    demand(_rows(broken) == _rows(straight), "another history than the run without a break")


def equal(strategy: Strategy, other: Strategy, clients: Sites, rounds: int) -> None:
    """Both come to the same model."""
    found, wanted = (_model(s, clients(), rounds) for s in (strategy, other))
    furthest = float(np.max(np.abs(found - wanted), initial=0)) if found.shape == wanted.shape else np.inf
    demand(furthest <= 1e-5, f"{furthest:.2g} away from {type(other).__name__}")


def _federation(strategy: Strategy, clients: Sequence[Client]) -> Federation:
    count = max(strategy.reducer.least + 1, len(clients) - 1)  # not all if possible: who is left out must not matter
    return Federation(clients=clients, strategy=strategy, per_round=min(count, len(clients)), seed=3)


def _model(
    strategy: Strategy,
    clients: Sequence[Client],
    rounds: int,
    backend: Carried | None = None,
    folder: Path | None = None,
) -> Vector:
    model = _federation(strategy, clients).run(rounds, backend or Carried(), folder).model
    assert model is not None
    return model


def _rows(history: History) -> list[tuple[object, ...]]:
    return [tuple(r.values()) for r in history.rows if not r["metric"].endswith("_s")]
