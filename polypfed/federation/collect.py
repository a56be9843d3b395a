"""One exchange with the sites: every reply goes through the gate, and what passes is reduced at once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from polypfed.core.errors import Refused
from polypfed.core.gate import Gate, default_max_norm
from polypfed.core.messages import Evaluation, Failure, Reply, Task, Update, one_line
from polypfed.core.model import Vector, nbytes
from polypfed.core.reduce import BUFFERS, InOrder
from polypfed.core.seeds import derive
from polypfed.core.signing import base_of
from polypfed.federation.protocol import Event

if TYPE_CHECKING:
    from polypfed.federation.engine import Engine


class Collected:
    """What the sites sent for one server round.

    Args:
        names: whose updates may count.
    """

    def __init__(self, engine: "Engine", number: int, names: Sequence[str]) -> None:
        self.number, self._boundary = number, engine.now.spec.boundary
        spool = engine.folder.spool if engine.folder else None
        self.queue = InOrder(engine.fed.strategy.reducer.start(self._lengths(engine)), names, spool)
        self.accepted: dict[str, int] = {}
        self.rounds: dict[str, int] = {}  # the round of each accepted update's task, by which its site keeps state
        self.metrics: dict[str, dict[str, float]] = {}
        self.local_models: dict[str, Vector] = {}
        self.failed = self.down = self.up = 0

    def _lengths(self, engine: "Engine") -> dict[str, int]:
        """The vectors that are reduced."""
        buffers = engine.now.spec.size - self._boundary
        return engine.lengths | {"delta": self._boundary, BUFFERS: buffers}

    def _parts(self, update: Update) -> Mapping[str, Vector]:
        """The delta's two sections are reduced apart."""
        delta = update.vectors["delta"]
        return {**update.vectors, "delta": delta[: self._boundary], BUFFERS: delta[self._boundary :]}

    @property
    def working(self) -> int:
        """Accepted updates with examples."""
        return sum(weight > 0 for weight in self.accepted.values())

    def count(self, update: Update, discount: float = 1.0) -> None:
        """Take an admitted update in."""
        parts = self._parts(update)
        if discount != 1.0:
            parts = {name: np.float32(discount) * vector for name, vector in parts.items()}
        self.accepted[update.client], self.rounds[update.client] = update.weight, update.round
        self.metrics[update.client] = {**update.metrics, "weight": update.weight}
        self.up += nbytes(update.vectors)
        self.queue.add(replace(update, vectors=parts))

    def leave_out(self, name: str) -> None:
        """An update that was taken in does not count after all."""
        for kept in (self.accepted, self.rounds, self.metrics, self.local_models):
            kept.pop(name, None)
        self.failed += 1


def collect(engine: "Engine", got: Collected, tasks: Mapping[str, Task]) -> None:
    """Exchange `tasks`, which are all of round `got.number`."""
    now, gate = engine.now, gate_for(engine, got.number, tasks)
    got.down += sum(nbytes(task.vectors) for task in tasks.values())
    for reply in engine.backend.exchange(tasks, engine.fed.deadline):
        checked = admit(engine, gate, reply)
        if isinstance(checked, Update):
            if engine.fed.evaluate == "matrix":
                got.local_models[checked.client] = now.x + checked.vectors["delta"]
            got.count(checked)
        else:
            got.failed += 1
            if checked.client in gate.given_up:
                got.queue.skip(checked.client)
        engine.tell(Event("fit", got.number, reply.client, checked))


def judge(engine: "Engine", got: Collected) -> None:
    """Refuse what stands out from its cohort. The gate sees updates one by one, and only now are all there."""
    if engine.fed.strategy.reducer.needs != "updates":
        return
    for name, words in sorted(got.queue.refused().items()):
        got.leave_out(name)
        engine.tell(Event("fit", got.number, name, record(engine, Failure(name, got.number, "opposed", words))))


def gate_for(engine: "Engine", number: int, tasks: Mapping[str, Task]) -> Gate:
    """The gate for the answers to `tasks`."""
    largest = engine.fed.max_norm or default_max_norm(engine.now.x)
    base = base_of(next(iter(tasks.values()))) if engine.verify else ""
    return Gate(engine.now.run, number, frozenset(tasks), engine.lengths, largest, base=base)


def admit(engine: "Engine", gate: Gate, reply: Reply) -> Update | Failure:
    """The update, if it passes; else a failure, which is recorded."""
    if isinstance(reply, Update):
        gate.verify = engine.verify
        try:
            return gate.admit(reply)
        except Refused as refusal:
            return record(engine, Failure(reply.client, gate.round, refusal.reason, str(refusal)))
    if isinstance(reply, Evaluation):
        return record(engine, Failure(reply.client, gate.round, "header", "an evaluation, not an update"))
    gate.give_up(reply.client)
    return record(engine, replace(reply, round=gate.round))


def record(engine: "Engine", failure: Failure) -> Failure:
    """Keep a failure; its words may be a stranger's, so they are cut to one line."""
    client, reason, detail = one_line(failure.client), one_line(failure.reason, 40), one_line(failure.detail)
    engine.history.failures.append(Failure(client, failure.round, reason, detail, engine.now.run))
    engine.witness.failed(engine.history.failures[-1])
    return engine.history.failures[-1]


def config_for(engine: "Engine", number: int, name: str, reply_bytes: int) -> dict[str, Any]:
    """What a task tells a site beside the vectors."""
    return {
        "run": engine.now.run,
        "seed": derive(engine.fed.seed, "client", number, name),
        "strategy": dict(engine.strategy),
        "accepted": engine.now.accepted.get(name, 0),
        "reply_bytes": reply_bytes,
        **engine.witness.head(),
    }
