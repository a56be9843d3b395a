"""Asynchronous rounds: sites work on the version they fetched; a server round is one full buffer.

Who finishes when is played on a virtual clock, and a site's work is done when its time has come. What is in flight,
and the versions it started from, are part of the checkpoint.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from polypfed.core.gate import max_bytes
from polypfed.core.history import row
from polypfed.core.messages import Failure, Task, Update
from polypfed.core.model import Vector, shared
from polypfed.core.seeds import derive
from polypfed.federation.collect import Collected, admit, config_for, gate_for, record
from polypfed.federation.protocol import Event
from polypfed.strategies.fedbuff import FedBuff

if TYPE_CHECKING:
    from polypfed.federation.engine import Engine


def fill(engine: "Engine", strategy: FedBuff, number: int) -> Collected:
    """Let sites finish, in order of time and name, until the buffer is full or nobody is left who could fill it."""
    now, got, tried = engine.now, Collected(engine, number, engine.sites), set[str]()
    flight = dict(now.flight) or {"clock": 0.0, "jobs": {}}
    jobs: dict[str, list[float]] = dict(flight["jobs"])  # site: [version it works on, when it will be done]
    bases = {**now.bases, number - 1: now.x}
    clock = float(flight["clock"])
    while got.working < strategy.buffer:
        for name in _free(engine, number, set(jobs) | tried)[: max(0, engine.asked - len(jobs))]:
            jobs[name] = [number - 1, clock + strategy.duration(engine.fed.seed, name, number - 1)]
        if not jobs:
            break
        name = min(jobs, key=lambda n: (jobs[n][1], n))
        version, clock = int(jobs[name][0]), jobs.pop(name)[1]
        tried.add(name)
        _finish(engine, strategy, got, name, version, bases)
    needed = {int(version) for version, _ in jobs.values()}
    now.flight, now.bases = {"clock": clock, "jobs": jobs}, {v: x for v, x in bases.items() if v in needed}
    return got


def _free(engine: "Engine", number: int, busy: set[str]) -> list[str]:
    """Sites that may start, in an order drawn anew for each round."""
    idle = [name for name in engine.sites if name not in busy]
    return sorted(idle, key=lambda name: derive(engine.fed.seed, "cohort", number, 0, name))


def _finish(
    engine: "Engine", strategy: FedBuff, got: Collected, name: str, version: int, bases: dict[int, Vector]
) -> None:
    """One site's work on `version`, done now; counted if it is not too old."""
    now, staleness = engine.now, got.number - 1 - version
    if staleness > strategy.max_staleness:
        late = Failure(name, got.number, "late", f"{staleness} versions old, at most {strategy.max_staleness} count")
        got.failed += 1
        engine.tell(Event("fit", got.number, name, record(engine, late)))
        return
    vectors = shared({"model": bases[version]})
    config = config_for(engine, version + 1, name, max_bytes(engine.lengths))
    task = Task(version + 1, "fit", vectors, config | {"cohort": strategy.buffer})
    gate = gate_for(engine, version + 1, {name: task})
    got.down += bases[version].nbytes
    for reply in engine.backend.exchange({name: task}, engine.fed.deadline):
        checked = admit(engine, gate, reply)
        if isinstance(checked, Update):
            if engine.fed.evaluate == "matrix":
                got.local_models[name] = bases[version] + checked.vectors["delta"]
            got.count(_present(checked, bases[version], now.x, now.spec.buffers), strategy.discount(staleness))
            engine.history.rows.append(row(got.number, name, "staleness", staleness))
            engine.history.rows.append(row(got.number, name, "arrived", len(got.accepted)))
        else:
            got.failed += 1
        engine.tell(Event("fit", got.number, reply.client, checked))


def _present(update: Update, base: Vector, x: Vector, buffers: slice) -> Update:
    """The update with its buffers as differences from the present model, not from the version they were trained on.

    Buffers are averaged, not moved: so a running variance stays between the present one and the site's.
    """
    if base is x or buffers.start == buffers.stop:
        return update
    delta = update.vectors["delta"].copy()
    delta[buffers] += base[buffers]
    delta[buffers] -= x[buffers]
    return replace(update, vectors={**update.vectors, "delta": delta})
