"""The round engine: configure -> exchange -> gate -> reduce -> step -> evaluate -> checkpoint."""

import json
import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from polypfed.clients.base import Client, HasInitial, agreed
from polypfed.core.checkpoint import Checkpoint
from polypfed.core.errors import CheckpointError, ConfigError, LayoutError, QuorumError, Refused
from polypfed.core.gate import Gate, admit_evaluation, default_max_norm, max_bytes, norm_of
from polypfed.core.history import History, mean_rows, row
from polypfed.core.messages import Evaluation, Failure, Reply, Task, Update, one_line
from polypfed.core.model import ModelSpec, Vector, fixed, nbytes, shared
from polypfed.core.reduce import InOrder
from polypfed.core.rundir import RunDirectory, machine
from polypfed.core.seeds import derive
from polypfed.core.settings import positive, site_names, whole
from polypfed.strategies.base import Cohort, Registry, Strategy, uploads
from polypfed.strategies.fedavg import FedAvg


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
        site_names(names)
        if self.per_round is not None:
            whole("per_round", self.per_round, 1, len(names) or None)
        whole("quorum", self.quorum, 1, self.per_round or len(names) or None)
        whole("retries", self.retries, 0, 1000)
        whole("seed", self.seed)
        positive(deadline=self.deadline, **{} if self.max_norm is None else {"max_norm": self.max_norm})
        if self.evaluate not in ("global", "matrix", "off"):
            raise ConfigError(f"{self.evaluate!r} is not one of global, matrix, off", where="evaluate")
        Registry.check(self.strategy)

    def run(
        self, rounds: int, backend: Backend, directory: str | Path | None = None, listen: Listener | None = None
    ) -> History:
        """Train for `rounds` server rounds.

        Args:
            rounds: at least 0; round 0 scores the initial model.
            directory: where the run is kept and can be resumed; nothing is written if None.
            listen: called with every Event.

        Raises:
            ConfigError: the folder holds a run already, or the sites cannot make a quorum.
            LayoutError: the initial model does not fit its layout, or the model is no longer finite.
            QuorumError: a round failed `retries` + 1 times; the run can be resumed.
            CheckpointError: the disk does not take what must be kept.
        """
        whole("rounds", rounds, 0)
        with self._open(backend, directory, listen) as engine:
            engine.begin()
            return engine.until(rounds)

    def resume(self, directory: str | Path, rounds: int, backend: Backend, listen: Listener | None = None) -> History:
        """Continue the run in `directory` until `rounds` rounds are done, to the same bits as without a break.

        Raises:
            CheckpointError: the folder holds no run, or one with other settings.
            QuorumError: a round failed `retries` + 1 times.
        """
        if not (Path(directory) / "run.json").exists():
            raise CheckpointError("holds no run", where=directory, remedy="Start it first")
        with self._open(backend, directory, listen) as engine:
            engine.restore()
            return engine.until(rounds)

    def _open(self, backend: Backend, directory: str | Path | None, listen: Listener | None) -> "_Engine":
        return _Engine(self, backend, Path(directory) if directory is not None else None, listen)


class _Engine:
    """One run under way: the checkpoint is its whole memory, the history its record."""

    def __init__(self, fed: Federation, backend: Backend, directory: Path | None, listen: Listener | None) -> None:
        self.fed, self.backend = fed, backend
        self.folder = RunDirectory(directory) if directory else None
        self.tell: Listener = listen or (lambda event: None)
        self.history = History()
        self.strategy = Registry.describe(fed.strategy)
        self.now: Checkpoint
        self._stack = ExitStack()

    def __enter__(self) -> "_Engine":
        with self._stack:
            if self.folder:
                self._stack.enter_context(self.folder)
            if self.fed.clients and isinstance(self.backend, Host):
                self._stack.callback(self.backend.close)
                self.backend.host(self.fed.clients, self.folder.path if self.folder else None)
            self.sites = sorted(self.backend.clients)
            if not self.sites:
                raise ConfigError("there is no site", where="clients")
            site_names(self.sites)
            whole("quorum", self.fed.quorum, 1, min(len(self.sites), self.fed.per_round or len(self.sites)))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self) -> None:
        """Round 0: the initial model, scored on every site."""
        spec, x = self.fed.initial or agreed(self.fed.clients)
        spec.views(x)
        if not np.isfinite(x).all():
            raise LayoutError("the initial model is not finite", where="initial")
        run = secrets.token_hex(8)
        state = self.fed.strategy.init(x[spec.trainable])
        self.now = Checkpoint(run, self._settings(spec), 0, spec, fixed(x.copy()), state)
        if self.folder:
            self.folder.begin({"run": run, "settings": self.now.settings, "machine": machine()})
        self._evaluate({})
        self._commit()

    def restore(self) -> None:
        """Back to the last checkpoint; to the very beginning if the run was killed before its first."""
        assert self.folder is not None
        if not self.folder.started:
            self.begin()
            return
        self.now, self.history = self.folder.restore()
        fixed(self.now.x)
        wanted = self._settings(self._layout())
        for key, value in self.now.settings.items():
            if wanted.get(key) != value:
                raise CheckpointError(
                    f"{key} was {value!r} when the run began and is {wanted.get(key)!r} now",
                    where=self.folder.path,
                    remedy="Resume with the settings the run began with",
                )

    def _layout(self) -> ModelSpec:
        """What is to be trained now, as far as it is known without asking a remote site."""
        if self.fed.initial:
            return self.fed.initial[0]
        first = next((c for c in self.fed.clients if isinstance(c, HasInitial)), None)
        return first.initial()[0] if first else self.now.spec

    def until(self, rounds: int) -> History:
        """Rounds up to `rounds`, then the history with the models in it."""
        self.lengths = {"delta": self.now.spec.size, **uploads(self.fed.strategy, self.now.spec.boundary)}
        while self.now.round < rounds:
            self._round(self.now.round + 1)
        best = self.now.best
        self.history.spec, self.history.model = self.now.spec, self.now.x.copy()
        self.history.best, self.history.best_round = None if best is None else best.copy(), self.now.best_round
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
            if self.folder:
                self.folder.commit(self.now, self.history)  # the failures, for whoever mends them
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
        broadcast = fed.strategy.broadcast(now.x[now.spec.trainable], shared(now.state))
        vectors = shared({"model": now.x, **broadcast})
        tasks = {n: Task(number, "fit", vectors, self._config(number, n, max_bytes(self.lengths))) for n in names}
        gate = Gate(now.run, number, frozenset(names), self.lengths, fed.max_norm or default_max_norm(now.x))
        spool = self.folder.spool if self.folder else None
        out = _Collected(InOrder(fed.strategy.reducer.start(self.lengths), names, spool))
        out.down = len(names) * nbytes(vectors)
        for reply in self.backend.exchange(tasks, fed.deadline):
            self.tell(Event("fit", number, reply.client, self._admit(reply, gate, out)))
        return out

    def _admit(self, reply: Reply, gate: Gate, out: "_Collected") -> Reply:
        if isinstance(reply, Update):
            try:
                update = gate.admit(reply)
            except Refused as refusal:
                return self._fail(out, Failure(reply.client, gate.round, refusal.reason, str(refusal)))
            if self.fed.evaluate == "matrix":
                out.local_models[update.client] = self.now.x + update.vectors["delta"]
            out.accepted[update.client] = update.weight
            out.metrics[update.client] = {**update.metrics, "weight": update.weight}
            out.up += nbytes(update.vectors)
            out.queue.add(update)
            return update
        if isinstance(reply, Evaluation):
            return self._fail(out, Failure(reply.client, gate.round, "header", "an evaluation, not an update"))
        gate.give_up(reply.client)
        out.queue.skip(reply.client)
        return self._fail(out, replace(reply, round=gate.round))

    def _fail(self, out: "_Collected", failure: Failure) -> Failure:
        out.failed += 1
        return self._record(failure)

    def _record(self, failure: Failure) -> Failure:
        """Keep a failure; its words may be a stranger's, so they are cut to one line."""
        client, reason, detail = one_line(failure.client), one_line(failure.reason, 40), one_line(failure.detail)
        self.history.failures.append(Failure(client, failure.round, reason, detail, self.now.run))
        return self.history.failures[-1]

    def _step(self, number: int, got: "_Collected") -> None:
        """The server half: the strategy moves the trainable part, buffers are averaged."""
        now, mean = self.now, got.queue.result()
        for site in sorted(got.metrics):
            self.history.rows += [row(number, site, m, v) for m, v in sorted(got.metrics[site].items())]
        working = {name: weight for name, weight in sorted(got.accepted.items()) if weight}
        if not working:  # an empty round: nothing moves, no moment decays
            return
        cohort = Cohort(number, tuple(working), tuple(working.values()), len(self.sites))
        trainable, buffers = now.spec.trainable, now.spec.buffers
        parts = {name: v[trainable] if name == "delta" else v for name, v in mean.items()}
        moved, state = self.fed.strategy.step(now.x[trainable], shared(now.state), parts, cohort)
        averaged = now.x[buffers] + mean["delta"][buffers]
        x = np.concatenate([moved, averaged]) if averaged.size else np.ascontiguousarray(moved)
        if x.dtype != np.float32 or x.shape != now.x.shape:
            raise LayoutError(f"step returned {x.dtype}{x.shape}, not float32{now.x.shape}", where="strategy")
        if math.isnan(norm_of(x)):
            raise LayoutError("the new model is not finite", where="strategy", remedy="Lower its learning rate")
        now.x, now.state = fixed(x), state
        now.accepted |= dict.fromkeys(working, number)

    def _evaluate(self, local_models: Mapping[str, Vector]) -> None:
        """The global model, and under "matrix" every local one, on every site's validation set."""
        if self.fed.evaluate == "off":
            return
        now, scores = self.now, dict[str, Evaluation]()
        vectors = shared({"model": now.x, **{f"model@{name}": y for name, y in sorted(local_models.items())}})
        tasks = {n: Task(now.round, "evaluate", vectors, self._config(now.round, n, max_bytes({}))) for n in self.sites}
        for reply in self.backend.exchange(tasks, self.fed.deadline):
            self.tell(Event("evaluate", now.round, reply.client, self._score(reply, scores)))
        for name, score in sorted(scores.items()):
            self.history.rows += [row(now.round, name, m, v) for m, v in sorted(score.metrics.items())]
        means = mean_rows(now.round, ((score.metrics, score.weight) for _, score in sorted(scores.items())))
        self.history.rows += means
        self._keep_best({r["metric"]: r["value"] for r in means}, scores.values())

    def _score(self, reply: Reply, scores: dict[str, Evaluation]) -> Reply:
        if isinstance(reply, Failure):
            return self._record(replace(reply, round=self.now.round))
        if isinstance(reply, Update):
            return self._record(Failure(reply.client, self.now.round, "header", "an update, not an evaluation"))
        try:
            admit_evaluation(reply, self.now.run, self.now.round, set(self.sites) - set(scores))
        except Refused as refusal:
            return self._record(Failure(reply.client, self.now.round, refusal.reason, str(refusal)))
        scores[reply.client] = reply
        return reply

    def _keep_best(self, means: Mapping[str, float], scores: Iterable[Evaluation]) -> None:
        """A mean over fewer sites is not comparable: more sites come first, then the better value."""
        sign, metric = (-1, self.fed.keep_best[1:]) if self.fed.keep_best[:1] == "-" else (1, self.fed.keep_best)
        if metric not in means:
            return
        now, value = self.now, sign * means[metric]
        sites = sum(metric in score.metrics and score.weight > 0 for score in scores)
        if now.best_value is None or (sites, value) > (now.best_sites, now.best_value):
            now.best, now.best_round, now.best_value, now.best_sites = now.x, now.round, value, sites

    def _cohort(self, number: int, attempt: int) -> list[str]:
        """`per_round` sites, drawn anew for each round and attempt: those whose derived seeds are lowest."""
        drawn = sorted(self.sites, key=lambda name: derive(self.fed.seed, "cohort", number, attempt, name))
        return sorted(drawn[: self.fed.per_round])

    def _config(self, number: int, name: str, reply_bytes: int) -> dict[str, Any]:
        return {
            "run": self.now.run,
            "seed": derive(self.fed.seed, "client", number, name),
            "strategy": dict(self.strategy),
            "accepted": self.now.accepted.get(name, 0),
            "reply_bytes": reply_bytes,
        }

    def _settings(self, spec: ModelSpec) -> dict[str, Any]:
        """What must not change between the beginning of a run and its end."""
        settings = {
            "strategy": self.strategy,
            "seed": self.fed.seed,
            "per_round": self.fed.per_round,
            "keep_best": self.fed.keep_best,
            "sites": self.sites,
            "layout": spec.digest,
        }
        return dict(json.loads(json.dumps(settings)))  # as a checkpoint gives it back

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
