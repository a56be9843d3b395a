"""check_backend: does what carries the messages keep the contract of the round engine?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from polypfed.backends.local import Local
from polypfed.clients.base import Client
from polypfed.core.messages import Evaluation, Failure, Reply, Task, Update
from polypfed.core.model import shared
from polypfed.federation import Backend, Federation, Host
from polypfed.strategies.registry import Registry
from polypfed.strategies.scaffold import Scaffold
from polypfed.testing.errors import demand, ruled, same
from polypfed.testing.sample import SampleClient, sample_sites


class Hosting(Backend, Host, Protocol):
    """A backend that runs the clients itself."""


Make = Callable[[], Hosting]


def check_backend(make: Make, *, deadline: float = 60.0) -> None:
    """Check a backend that runs clients itself.

    Args:
        make: makes a fresh backend.
        deadline: seconds that one exchange may take.

    Raises:
        ContractError: naming the rule that is broken.

    Examples:
        >>> from polypfed.backends import Local
        >>> check_backend(Local)
    """
    where = type(make()).__name__
    for check in (answers, survives, bits):
        with ruled(check.__name__, where):
            check(make, deadline)


@dataclass
class Crashing(SampleClient):
    """A site whose training fails."""

    def fit(self, task: Task) -> Update:
        """Raises."""
        raise ZeroDivisionError("on purpose")


def answers(make: Make, deadline: float) -> None:
    """Everybody asked answers once, nobody else does, each to its own task."""
    backend = _hosting(make, sample_sites(4)[::-1])
    try:
        demand([*backend.clients] == [f"site-{i:02d}" for i in range(4)], "clients are not sorted names")
        asked = {name: _task("fit", i + 1) for i, name in enumerate(["site-00", "site-02", "site-03"])}
        replies = _exchanged(backend, asked, deadline)
        found = {reply.client: reply for reply in replies}
        heard = sorted(reply.client for reply in replies)
        demand(heard == sorted(asked), f"{heard} answered, {sorted(asked)} were asked")
        for name, reply in found.items():
            good = isinstance(reply, Update) and (reply.round, reply.run) == (asked[name].round, "check")
            demand(good, f"{name} did not answer its task: {reply}")
        scores = _exchanged(backend, {"site-01": _task("evaluate", 5)}, deadline)
        demand([type(r) for r in scores] == [Evaluation], f"an evaluation was asked for, got {scores}")
    finally:
        backend.close()
    demand(not backend.clients, "still has clients after close()")


def survives(make: Make, deadline: float) -> None:
    """A site that fails is a Failure under its name; the others' answers arrive."""
    backend = _hosting(make, [*sample_sites(2), Crashing("site-02", 2)])
    try:
        found = {r.client: r for r in _exchanged(backend, {n: _task("fit", 1) for n in backend.clients}, deadline)}
    finally:
        backend.close()
    kinds = [type(found.get(f"site-{i:02d}")) for i in range(3)]
    demand(kinds == [Update, Update, Failure], f"one site of three fails, the answers are {kinds}")


def bits(make: Make, deadline: float) -> None:
    """A run gives the bits that Local gives, sites that keep state included."""
    found, wanted = (
        Federation(clients=sample_sites(4), strategy=Scaffold(), per_round=3, deadline=deadline).run(3, backend).model
        for backend in (make(), Local())
    )
    demand(same(found, wanted), "other bits than in one process")


def _hosting(make: Make, clients: list[Client]) -> Hosting:
    backend = make()
    demand(isinstance(backend, Host), "has no host() and close(): it does not run clients itself")
    backend.host(clients, None)
    return backend


def _exchanged(backend: Backend, tasks: dict[str, Task], deadline: float) -> list[Reply]:
    found = []
    for reply in backend.exchange(tasks, deadline):
        vectors = {name: np.array(v) for name, v in getattr(reply, "vectors", {}).items()}
        demand(all(np.isfinite(v).all() for v in vectors.values()), f"{reply.client} sent no numbers")
        found.append(reply)
    return found


def _task(kind: str, number: int) -> Task:
    config = {"run": "check", "seed": number, "strategy": Registry.describe(Scaffold()), "reply_bytes": 1 << 22}
    x = sample_sites(1)[0].initial()[1]  # type: ignore[attr-defined]  # sample sites have it
    control = {"c": np.zeros(9, np.float32)} if kind == "fit" else {}
    return Task(number, kind, shared({"model": x, **control}), config)  # type: ignore[arg-type]  # one of the kinds
