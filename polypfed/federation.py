"""The round engine: configure -> exchange -> gate -> reduce -> step -> evaluate -> checkpoint."""

import platform
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from polypfed.clients.base import Client, HasInitial
from polypfed.core.checkpoint import Checkpoint
from polypfed.core.errors import CheckpointError, ConfigError, LayoutError, QuorumError, Refused
from polypfed.core.gate import Gate, default_max_norm
from polypfed.core.history import History, mean_rows, row
from polypfed.core.messages import Evaluation, Failure, Reply, Task, Update, finite
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.reduce import InOrder
from polypfed.core.rundir import RunDirectory
from polypfed.core.seeds import derive, generator
from polypfed.strategies.base import Cohort, Registry, Strategy, uploads
from polypfed.strategies.fedavg import FedAvg

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class Backend(Protocol):
    """What carries tasks to sites and replies back.

    Attributes:
        clients: stable site names, sorted.
    """

    @property
    def clients(self) -> Sequence[str]: ...

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        """Deliver one task per site; yield replies as they come, within `deadline` seconds.

        Every site asked is answered for: what does not come is a Failure. A reply's vectors are valid until the next
        reply is taken from the iterator. Nothing raises because of one site.
        """


@runtime_checkable
class Host(Protocol):
    """A backend that runs the clients itself."""

    def host(self, clients: Sequence[Client], directory: Path | None) -> None:
        """Take these clients; their state is kept below `directory`/sites."""

    def close(self) -> None:
        """Let go of the clients; end worker processes."""


@dataclass(frozen=True)
class Event:
    """Something happened: "round" begins, a "fit" or "evaluate" reply came, a round was "abandoned" or "saved"."""

    kind: Literal["round", "fit", "evaluate", "abandoned", "saved"]
    round: int
    site: str = ""
    reply: Reply | None = None


Listener = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Sites that train one model together.

    Args:
        clients: the sites, where the backend runs them on this machine; remote backends bring their own.
        strategy: the federated algorithm.
        quorum: accepted updates without which a round does not count; checked at aggregation.
        deadline: seconds for one exchange with the sites.
        per_round: sites asked to train in a round, drawn anew each round; None asks all.
        retries: how often an abandoned round is tried again before the run ends.
        seed: from which every other seed is derived.
        evaluate: "global" scores the global model on every site after each round, "matrix" each site's local model
            too (the cross-site matrix), "off" nothing.
        keep_best: the metric whose best round is kept as `History.best`; "-loss" means lower is better.
        initial: layout and starting model; None takes it from the clients, which must agree.
        max_norm: largest norm of a delta; None is 1000 * (|x| + sqrt(P)).

    Raises:
        ConfigError: a setting is out of range, or two clients share a name.
    """

    clients: Sequence[Client] = ()
    strategy: Strategy = FedAvg()
    quorum: int = 1
    deadline: float = 3600.0
    per_round: int | None = None
    retries: int = 1
    seed: int = 0
    evaluate: Literal["global", "matrix", "off"] = "global"
    keep_best: str = "map50"
    initial: tuple[ModelSpec, Vector] | None = None
    max_norm: float | None = None

    def __post_init__(self) -> None:
        names = [c.name for c in self.clients]
        for name in names:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ConfigError(f"{name!r} cannot name a site", where="clients", remedy=f"Use {_NAME.pattern}")
        if len(set(names)) < len(names):
            raise ConfigError("two sites share a name", where="clients", remedy="Rename one")
        asked = self.per_round if self.per_round is not None else max(len(names), self.quorum)
        limits = {"quorum": (self.quorum, 1, asked), "retries": (self.retries, 0, 1000)}
        if self.per_round is not None:
            limits["per_round"] = (self.per_round, 1, len(names) or self.per_round)
        for field, (value, low, high) in limits.items():
            if type(value) is not int or not low <= value <= high:
                raise ConfigError(f"{value!r} is not a whole number from {low} to {high}", where=field)
        if not self.deadline > 0:
            raise ConfigError(f"{self.deadline!r} is not a number above 0", where="deadline")
        if Registry.build(Registry.describe(self.strategy)) != self.strategy:
            raise ConfigError("cannot be rebuilt from its own description", where="strategy")

    def run(
        self, rounds: int, backend: Backend, directory: str | Path | None = None, listen: Listener | None = None
    ) -> History:
        """Train for `rounds` server rounds.

        Args:
            directory: where the run is kept and can be resumed; nothing is written if None.
            listen: called with every Event.

        Raises:
            ConfigError: the folder holds a run already, or there is no site.
            QuorumError: a round failed `retries` + 1 times; the run can be resumed.
        """
        with self._open(backend, directory, listen) as engine:
            engine.begin()
            return engine.until(rounds)

    def resume(
        self, directory: str | Path, rounds: int, backend: Backend, listen: Listener | None = None
    ) -> History:
        """Continue the run in `directory` until `rounds` rounds are done, to the same bits as without a break.

        Raises:
            CheckpointError: the folder holds no run, or one with other settings.
            QuorumError: a round failed `retries` + 1 times.
        """
        with self._open(backend, directory, listen) as engine:
            engine.restore()
            return engine.until(rounds)

    def _open(
        self, backend: Backend, directory: str | Path | None, listen: Listener | None
    ) -> AbstractContextManager["_Engine"]:
        return _Engine(self, backend, Path(directory) if directory is not None else None, listen)


class _Engine(AbstractContextManager["_Engine"]):
    """One run under way: the checkpoint is its whole memory, the history its record."""

    def __init__(self, fed: Federation, backend: Backend, directory: Path | None, listen: Listener | None) -> None:
        self.fed, self.backend = fed, backend
        self.folder = RunDirectory(directory) if directory else None
        self.tell: Listener = listen or (lambda event: None)
        self.history = History()
        self.now: Checkpoint
        self._stack = ExitStack()

    def __enter__(self) -> "_Engine":
        with self._stack:
            self._stack.enter_context(self.folder or nullcontext())
            if self.fed.clients and isinstance(self.backend, Host):
                self._stack.callback(self.backend.close)
                self.backend.host(self.fed.clients, self.folder.path if self.folder else None)
            if not self.backend.clients:
                raise ConfigError("there is no site", where="clients")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self) -> None:
        """Round 0: the initial model, scored on every site."""
        spec, x = self.fed.initial or _agreed(self.fed.clients)
        run = secrets.token_hex(8)
        state = self.fed.strategy.init(x[spec.trainable])
        self.now = Checkpoint(run, self._settings(spec), 0, spec, x, state)
        if self.folder:
            self.folder.begin({"run": run, "started": _now(), "settings": self.now.settings, "machine": machine()})
        self._evaluate({})
        self._commit()

    def restore(self) -> None:
        """Back to the last checkpoint; to the very beginning if the run was killed before its first."""
        if self.folder is None or not (self.folder.path / "run.json").exists():
            where = self.folder.path if self.folder else ""
            raise CheckpointError("holds no run", where=where, remedy="Start it first")
        if not self.folder.started:
            return self.begin()
        self.now, self.history = self.folder.restore()
        wanted = self._settings(self.now.spec)
        for key, value in self.now.settings.items():
            if wanted.get(key) != value:
                raise CheckpointError(
                    f"{key} was {value!r} when the run began and is {wanted.get(key)!r} now",
                    where=self.folder.path,
                    remedy="Resume with the settings the run began with",
                )

    def until(self, rounds: int) -> History:
        """Rounds up to `rounds`, then the history with the models in it."""
        while self.now.round < rounds:
            self._round(self.now.round + 1)
        self.history.spec, self.history.model = self.now.spec, self.now.x
        self.history.best, self.history.best_round = self.now.best, self.now.best_round
        return self.history

    def _round(self, number: int) -> None:
        begun = monotonic()
        for attempt in range(self.fed.retries + 1):
            self.tell(Event("round", number))
            collected = self._collect(number, attempt)
            if len(collected.accepted) >= self.fed.quorum:
                break
            self.tell(Event("abandoned", number))
        else:
            raise QuorumError(
                f"round {number}: {len(collected.accepted)} accepted updates, the quorum is {self.fed.quorum}",
                remedy="See failures.jsonl for the reasons, mend them and resume the run",
            )
        self._step(number, collected)
        self.now.round = number
        self._evaluate(collected.local_models)
        totals = {"accepted": len(collected.accepted), "failed": collected.failed, "round_s": monotonic() - begun}
        totals |= {"bytes_down": collected.down, "bytes_up": collected.up}
        self.history.rows += [row(number, "", name, value) for name, value in totals.items()]
        self._commit()

    def _collect(self, number: int, attempt: int) -> "_Collected":
        """One exchange: every update goes through the gate, and what passes is summed at once."""
        fed, now = self.fed, self.now
        names = self._cohort(number, attempt)
        shared = fed.strategy.broadcast(now.x[now.spec.trainable], now.state)
        vectors = {"model": now.x, **shared}
        tasks = {name: Task(number, "fit", vectors, self._config(number, name)) for name in names}
        lengths = {"delta": now.spec.size, **uploads(fed.strategy, now.spec.boundary)}
        gate = Gate(now.run, number, frozenset(names), lengths, fed.max_norm or default_max_norm(now.x))
        spool = self.folder.spool if self.folder else None
        out = _Collected(InOrder(fed.strategy.reducer.start(lengths), names, spool))
        out.down = len(names) * _size(vectors)
        for reply in self.backend.exchange(tasks, fed.deadline):
            self.tell(Event("fit", number, reply.client, self._admit(reply, gate, out)))
        return out

    def _admit(self, reply: Reply, gate: Gate, out: "_Collected") -> Reply:
        if isinstance(reply, Update):
            try:
                update = gate.admit(reply)
            except Refused as refusal:
                return self._fail(out, Failure(reply.client, gate.round, refusal.reason, str(refusal), gate.run))
            if self.fed.evaluate == "matrix":
                out.local_models[update.client] = self.now.x + update.vectors["delta"]
            out.accepted[update.client] = update.weight
            out.metrics[update.client] = {**update.metrics, "weight": update.weight}
            out.up += _size(update.vectors)
            out.queue.add(update)
            return update
        if isinstance(reply, Failure):
            out.queue.skip(reply.client)
            return self._fail(out, replace(reply, round=gate.round))
        return self._fail(out, Failure(reply.client, gate.round, "header", "an evaluation, not an update", gate.run))

    def _fail(self, out: "_Collected", failure: Failure) -> Failure:
        out.failed += 1
        self.history.failures.append(failure)
        return failure

    def _step(self, number: int, got: "_Collected") -> None:
        """The server half: the strategy moves the trainable part, buffers are averaged."""
        now, mean = self.now, got.queue.result()
        for site in sorted(got.metrics):
            self.history.rows += [row(number, site, m, v) for m, v in sorted(got.metrics[site].items())]
        working = {name: weight for name, weight in sorted(got.accepted.items()) if weight}
        if not working:  # an empty round: nothing moves, no moment decays
            return
        cohort = Cohort(number, tuple(working), tuple(working.values()), len(self.backend.clients))
        trainable, buffers = now.spec.trainable, now.spec.buffers
        parts = {name: v[trainable] if name == "delta" else v for name, v in mean.items()}
        moved, state = self.fed.strategy.step(now.x[trainable], now.state, parts, cohort)
        x = np.concatenate([moved, now.x[buffers] + mean["delta"][buffers]])
        if x.dtype != np.float32 or x.shape != now.x.shape:
            raise LayoutError(f"step returned {x.dtype}{x.shape}, not float32{now.x.shape}", where="strategy")
        if not np.isfinite(x).all():
            raise LayoutError("the new model is not finite", where="strategy", remedy="Lower its learning rate")
        now.x, now.state = x, state
        now.accepted |= dict.fromkeys(working, number)

    def _evaluate(self, local_models: Mapping[str, Vector]) -> None:
        """The global model, and under "matrix" every local one, on every site's validation set."""
        if self.fed.evaluate == "off":
            return
        now = self.now
        vectors = {"model": now.x, **{f"model@{name}": y for name, y in sorted(local_models.items())}}
        names = self.backend.clients
        tasks = {name: Task(now.round, "evaluate", vectors, self._config(now.round, name)) for name in names}
        scores: dict[str, Evaluation] = {}
        for reply in self.backend.exchange(tasks, self.fed.deadline):
            self.tell(Event("evaluate", now.round, reply.client, reply))
            if problem := _problem(reply, now, tasks, scores):
                self.history.failures.append(problem)
            elif isinstance(reply, Evaluation):
                scores[reply.client] = reply
        for name in sorted(scores):
            self.history.rows += [row(now.round, name, m, v) for m, v in sorted(scores[name].metrics.items())]
        means = mean_rows(now.round, ((scores[n].metrics, scores[n].weight) for n in sorted(scores)))
        self.history.rows += means
        self._keep_best({r["metric"]: r["value"] for r in means})

    def _keep_best(self, means: Mapping[str, float]) -> None:
        sign, metric = (-1, self.fed.keep_best[1:]) if self.fed.keep_best[:1] == "-" else (1, self.fed.keep_best)
        if metric not in means:
            return
        value = sign * means[metric]
        if self.now.best_value is None or value > self.now.best_value:
            self.now.best, self.now.best_round, self.now.best_value = self.now.x, self.now.round, value

    def _cohort(self, number: int, attempt: int) -> list[str]:
        names = sorted(self.backend.clients)
        if self.fed.per_round is None or self.fed.per_round >= len(names):
            return names
        draw = generator(self.fed.seed, "cohort", number, attempt)
        return sorted(draw.choice(names, self.fed.per_round, replace=False).tolist())

    def _config(self, number: int, name: str) -> dict[str, Any]:
        return {
            "run": self.now.run,
            "seed": derive(self.fed.seed, "client", number, name),
            "strategy": Registry.describe(self.fed.strategy),
            "accepted": self.now.accepted.get(name, 0),
        }

    def _settings(self, spec: ModelSpec) -> dict[str, Any]:
        """What must not change between the beginning of a run and its end."""
        return {
            "strategy": Registry.describe(self.fed.strategy),
            "seed": self.fed.seed,
            "per_round": self.fed.per_round,
            "sites": list(self.backend.clients),
            "layout": spec.digest,
        }

    def _commit(self) -> None:
        if self.folder:
            self.folder.commit(self.now, self.history)
        self.tell(Event("saved", self.now.round))


class _Collected:
    """What one exchange brought."""

    def __init__(self, queue: InOrder) -> None:
        self.queue = queue
        self.accepted: dict[str, int] = {}
        self.metrics: dict[str, dict[str, float]] = {}
        self.local_models: dict[str, Vector] = {}
        self.failed = self.down = self.up = 0


def _problem(reply: Reply, now: Checkpoint, asked: Iterable[str], seen: Mapping[str, Evaluation]) -> Failure | None:
    if isinstance(reply, Failure):
        return replace(reply, round=now.round)
    who = str(reply.client)
    if not isinstance(reply, Evaluation):
        return Failure(who, now.round, "header", "an update, not an evaluation", now.run)
    if reply.run != now.run or reply.round != now.round or who in seen or who not in asked:
        return Failure(who, now.round, "stale-round", "not an answer to this evaluation", now.run)
    if type(reply.weight) is not int or reply.weight < 0 or not finite(reply.metrics):
        return Failure(who, now.round, "metrics", "a metric or weight is not a finite number", now.run)
    return None


def _agreed(clients: Sequence[Client]) -> tuple[ModelSpec, Vector]:
    """The initial model that all clients propose."""
    first: tuple[ModelSpec, Vector] | None = None
    for client in clients:
        if not isinstance(client, HasInitial):
            continue
        spec, x = client.initial()
        if first is None:
            first = spec, x.copy()
        elif spec != first[0] or not np.array_equal(x, first[1]):
            raise ConfigError(
                "proposes another model than the first site", where=client.name, remedy="Give Federation(initial=...)"
            )
    if first is None:
        raise ConfigError("no client has initial()", where="initial", remedy="Give Federation(initial=(spec, x))")
    return first


def _size(vectors: Mapping[str, Vector]) -> int:
    return sum(v.nbytes for v in vectors.values())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine() -> dict[str, str]:
    """What this run ran on."""
    return {"system": platform.platform(), "python": platform.python_version(), "numpy": np.__version__}
