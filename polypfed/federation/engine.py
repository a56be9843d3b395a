"""The round engine: configure -> exchange -> gate -> reduce -> step -> evaluate -> checkpoint."""

import json
import math
import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polypfed.clients.base import HasInitial, agreed
from polypfed.core import checkpoint as checkpoints
from polypfed.core.audit import Signer, Verifier
from polypfed.core.checkpoint import Checkpoint
from polypfed.core.errors import CheckpointError, ConfigError, LayoutError, QuorumError, Refused
from polypfed.core.gate import admit_evaluation, max_bytes, norm_of
from polypfed.core.heap import give_back
from polypfed.core.history import History, Row, mean_rows, row
from polypfed.core.messages import Evaluation, Failure, Reply, Task, Update
from polypfed.core.model import ModelSpec, Vector, fixed, shared
from polypfed.core.reduce import BUFFERS
from polypfed.core.rundir import RunDirectory, machine
from polypfed.core.seeds import derive
from polypfed.core.settings import site_names, whole
from polypfed.core.signing import verifying
from polypfed.federation.collect import Collected, collect, config_for, judge, record
from polypfed.federation.flight import fill
from polypfed.federation.protocol import Backend, Event, Host, Listener
from polypfed.federation.riding import Combines, Riding
from polypfed.federation.witness import Witness
from polypfed.privacy.keyring import member_verifiers, own_signer
from polypfed.strategies.base import Cohort, Scores, nested, rehearse, uploads
from polypfed.strategies.fedbuff import FedBuff
from polypfed.strategies.keepbest import KeepBest
from polypfed.strategies.registry import Registry

if TYPE_CHECKING:
    from polypfed.federation.api import Federation


class Engine:
    """One run under way: the checkpoint is its whole memory, the history its record."""

    def __init__(self, fed: "Federation", backend: Backend, directory: Path | None, listen: Listener | None) -> None:
        self.fed, self.backend = fed, backend
        self.folder = RunDirectory(directory) if directory else None
        self._listen: Listener = listen or (lambda event: None)
        self.history = History()
        self.witness = Witness(self, directory, self._signer)
        self.verify: Callable[[Update], None] | None = None
        self.strategy = Registry.describe(fed.strategy)
        self.now: Checkpoint
        self._told = 0  # rows of the history that listeners have
        self._stack = ExitStack()

    def __enter__(self) -> "Engine":
        with self._stack:
            if self.folder:
                self._stack.enter_context(self.folder)
            place = self._place()
            if self.fed.clients and isinstance(self.backend, Host):
                self._stack.callback(self.backend.close)
                self.backend.host(self.fed.clients, place)
            if isinstance(self.backend, Combines) and _may_wait(self.fed):
                self.backend = Riding(self.backend)
            self.sites = sorted(self.backend.clients)
            if not self.sites:
                raise ConfigError("there is no site", where="clients")
            site_names(self.sites)
            self.verify = verifying(self._verifiers())
            self.asked = min(len(self.sites), self.fed.per_round or len(self.sites))
            whole("quorum", self.fed.quorum, 1, self.asked)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.witness.stopped(kind)
        self._stack.close()

    def _place(self) -> Path | None:
        """Where hosted clients keep what they must."""
        return self.folder.path if self.folder else None

    def _signer(self) -> Signer | None:
        """Of the heads of the audit log."""
        return own_signer(self.fed.keys) if self.fed.keys else None

    def _verifiers(self) -> Mapping[str, Verifier]:
        """Who must sign, and how that is checked; nobody without keys."""
        return member_verifiers(self.fed.keys) if self.fed.keys else {}

    def tell(self, event: Event) -> None:
        """To the audit log, then to whoever listens."""
        self.witness.saw(event)
        self._listen(replace(event, run=self.now.run))

    @property
    def least(self) -> int:
        """Updates with examples below which a round is void."""
        return self.fed.strategy.reducer.least

    def begin(self) -> None:
        """Round 0: the initial model, scored on every site."""
        layout, x = self.fed.initial or agreed(self.fed.clients)
        layout.views(x)
        if not np.isfinite(x).all():
            raise LayoutError("the initial model is not finite", where="initial")
        self._check(layout)
        run, spec = secrets.token_hex(8), self.fed.strategy.wire(layout)
        if spec is not layout:
            x = x[layout.places({part.name for part in spec.parts})]
        state = self.fed.strategy.init(x[spec.trainable])
        self.now = Checkpoint(run, self._settings(layout.digest), 0, spec, fixed(x.copy()), state)
        if self.folder:
            about = {"run": run, "settings": self.now.settings, "machine": machine()}
            budget = self.fed.budget
            if budget is not None and math.isfinite(budget.epsilon):
                about["budget"] = {"epsilon": budget.epsilon, "delta": budget.delta}
            self.folder.begin(about)
        self.witness.open("begin")
        self._evaluate({})
        for strategy in nested(self.fed.strategy):
            if isinstance(strategy, KeepBest):
                strategy.check_scores(_scores(self.now))
        self._commit()

    def restore(self) -> None:
        """Back to the last checkpoint; to the very beginning if the run was killed before its first."""
        assert self.folder is not None
        if not self.folder.started:
            self.begin()
            return
        self.now, self.history = self.folder.restore()
        fixed(self.now.x)
        layout = self._layout()
        if layout is not None:
            self._check(layout)
        wanted = self._settings(layout.digest if layout else self.now.settings.get("layout", ""))
        for key, value in self.now.settings.items():
            if wanted.get(key) != value:
                raise CheckpointError(
                    f"{key} was {value!r} when the run began and is {wanted.get(key)!r} now",
                    where=self.folder.path,
                    remedy="Resume with the settings the run began with",
                )
        self.witness.open("resume", skipped=checkpoints.skipped(self.folder.path / "checkpoint", self.now.round))
        self._tell_rows("resumed")
        if self.now.flight.get("unscored"):
            self._evaluate({})

    def _check(self, layout: ModelSpec) -> None:
        """Refuse before round 1 what cannot work."""
        self.fed.strategy.check(layout, self.sites, self.asked)
        rehearse(self.fed.strategy, self.sites)
        for client in self.fed.clients:
            check = getattr(client, "check", None)
            if check is not None:
                check(self.fed.strategy)

    def _layout(self) -> ModelSpec | None:
        """What is to be trained now, as far as it is known without asking a remote site."""
        if self.fed.initial:
            return self.fed.initial[0]
        first = next((c for c in self.fed.clients if isinstance(c, HasInitial)), None)
        return first.initial()[0] if first else None

    def until(self, rounds: int) -> History:
        """Rounds up to `rounds`, then the history with the models in it."""
        spec = self.now.spec
        self.lengths = self._lengths()
        while self.now.round < rounds:
            self._round(self.now.round + 1)
        if isinstance(self.backend, Riding) and self.backend.flush(self.fed.deadline):
            self._commit()
        best = self.now.best
        self.history.spec, self.history.best_round = spec, self.now.best_round
        if self.now.x.size:  # a server that sees no model has none to give
            self.history.model, self.history.best = self.now.x.copy(), None if best is None else best.copy()
        return self.history

    def _lengths(self) -> dict[str, int]:
        """The vectors of an update by name."""
        return {"delta": self.now.spec.size, **uploads(self.fed.strategy, self.now.spec.boundary)}

    def _round(self, number: int) -> None:
        begun, before = monotonic(), replace(self.now)
        for attempt in range(self.fed.retries + 1):
            self._attempting(number)
            self.tell(Event("round", number))
            got = self._collect(number, attempt)
            judge(self, got)
            if len(got.accepted) >= self.fed.quorum and not 0 < got.working < self.least:
                break
            self.tell(Event("abandoned", number))
        else:
            self._save()  # the failures, for whoever mends them
            raise QuorumError(
                f"round {number}: {self._too_few(got)}",
                remedy="See failures.jsonl for the reasons, mend them and resume the run",
            )
        self._step(number, got)
        self.now.round = number
        self._evaluate(got.local_models)
        kept = self.fed.strategy.keeps(_scores(before), _scores(self.now))
        if not kept:
            self._roll_back(before)
        self.witness.done(not kept)
        totals = {"accepted": len(got.accepted), "failed": got.failed, "round_s": monotonic() - begun}
        totals |= {"bytes_down": got.down, "bytes_up": got.up}
        self.history.rows += [row(number, "", name, value) for name, value in totals.items()]
        self._commit()

    def _attempting(self, number: int) -> None:
        """Before anything is asked of the sites."""

    def _too_few(self, got: Collected) -> str:
        if len(got.accepted) < self.fed.quorum:
            return f"{len(got.accepted)} accepted updates, the quorum is {self.fed.quorum}"
        name = type(self.fed.strategy.reducer).__name__
        return f"{got.working} updates with examples, {name} needs {self.least}"

    def _collect(self, number: int, attempt: int) -> Collected:
        if isinstance(self.fed.strategy, FedBuff):
            return fill(self, self.fed.strategy, number)
        names = self._cohort(number, attempt)
        broadcast = self.fed.strategy.broadcast(self.now.x[self.now.spec.trainable], shared(self.now.state))
        vectors = shared({"model": self.now.x, **broadcast, **self._more_vectors()})
        config = {n: config_for(self, number, n, max_bytes(self.lengths)) | self._more_config() for n in names}
        config = {n: told | {"cohort": len(names)} for n, told in config.items()}
        got = self._collected(number, names)
        collect(self, got, {n: Task(number, "fit", vectors, config[n]) for n in names})
        return got

    def _more_vectors(self) -> Mapping[str, Vector]:
        """What else a fit task carries."""
        return {}

    def _more_config(self) -> dict[str, Any]:
        """What else a task says."""
        return {}

    def _collected(self, number: int, names: list[str]) -> Collected:
        return Collected(self, number, names)

    def _mean(self, got: Collected) -> dict[str, Vector]:
        """What the strategy's step and the buffers get."""
        return got.queue.result()

    def _step(self, number: int, got: Collected) -> None:
        """The server half: the strategy moves the trainable part, buffers are averaged."""
        now, mean = self.now, self._mean(got)
        self._write_metrics(got)
        working = {name: weight for name, weight in sorted(got.accepted.items()) if weight}
        if not working:  # an empty round: nothing moves, no moment decays
            return
        cohort = self._counted(number, working)
        buffers = now.spec.moved_buffers(now.x, mean.pop(BUFFERS))
        moved, state = self.fed.strategy.step(now.x[now.spec.trainable], shared(now.state), mean, cohort)
        x = np.concatenate([moved, buffers]) if buffers.size else np.ascontiguousarray(moved)
        if x.dtype != np.float32 or x.shape != now.x.shape:
            raise LayoutError(f"step returned {x.dtype}{x.shape}, not float32{now.x.shape}", where="strategy")
        if math.isnan(norm_of(x)):
            raise LayoutError("the new model is not finite", where="strategy", remedy="Lower its learning rate")
        now.x, now.state = fixed(x), state
        now.accepted = now.accepted | {name: got.rounds[name] for name in working}

    def _counted(self, number: int, working: Mapping[str, int]) -> Cohort:
        """Whose updates count, as the strategy's step is told."""
        return Cohort(number, tuple(working), tuple(working.values()), len(self.sites))

    def _write_metrics(self, got: Collected) -> None:
        for site in sorted(got.metrics):
            self.history.rows += [row(got.number, site, m, v) for m, v in sorted(got.metrics[site].items())]

    def _roll_back(self, before: Checkpoint) -> None:
        """The model, the strategy's state, and by `accepted` what the sites kept, are again as before the round.

        The scores in the history are those of the model that stays; the other one's are called candidate/METRIC.
        """
        number, now = self.now.round, self.now
        for r in self.history.rows[self._evaluated :]:
            r["metric"] = f"candidate/{r['metric']}"
        self.history.rows += _score_rows(number, _scores(before))
        self.history.rows.append(row(number, "", "rejected", 1))
        self.now = replace(
            before, round=number, rows=now.rows, failures=now.failures, privacy=now.privacy, audit=now.audit
        )

    def _evaluate(self, local_models: Mapping[str, Vector]) -> None:
        """The global model, and under "matrix" every local one, on every site's validation set."""
        self._evaluated = len(self.history.rows)  # where the rows of the latest evaluation begin
        if self.fed.evaluate == "off":
            return
        tasks, scores = self._evaluation_tasks(local_models), dict[str, Evaluation]()

        def take(reply: Reply) -> None:
            self.tell(Event("evaluate", self.now.round, reply.client, self._score(reply, scores)))

        if isinstance(self.backend, Riding):
            self.now.flight = {"unscored": True}
            self.backend.defer(tasks, take, lambda: self._count(scores))
            return
        for reply in self.backend.exchange(tasks, self.fed.deadline):
            take(reply)
        self._count(scores)

    def _count(self, scores: dict[str, Evaluation]) -> None:
        """All sites have answered: their scores are the model's."""
        now = self.now
        now.flight = {k: v for k, v in now.flight.items() if k != "unscored"}
        counted = sorted(self._agreeing(scores).items())
        now.scores = {n: [dict(sorted(e.metrics.items())), e.weight] for n, e in counted}
        self.history.rows += _score_rows(now.round, _scores(now))
        self._keep_best()

    def _evaluation_tasks(self, local_models: Mapping[str, Vector]) -> dict[str, Task]:
        vectors = shared({"model": self.now.x, **{f"model@{name}": y for name, y in sorted(local_models.items())}})
        config = {n: config_for(self, self.now.round, n, max_bytes({})) | self._more_config() for n in self.sites}
        return {n: Task(self.now.round, "evaluate", vectors, config[n]) for n in self.sites}

    def _agreeing(self, scores: dict[str, Evaluation]) -> dict[str, Evaluation]:
        """The evaluations that are of this server's model: all."""
        return scores

    def _score(self, reply: Reply, scores: dict[str, Evaluation]) -> Reply:
        if isinstance(reply, Failure):
            return record(self, replace(reply, round=self.now.round))
        if isinstance(reply, Update):
            return record(self, Failure(reply.client, self.now.round, "header", "an update, not an evaluation"))
        try:
            admit_evaluation(reply, self.now.run, self.now.round, set(self.sites) - set(scores))
        except Refused as refusal:
            return record(self, Failure(reply.client, self.now.round, refusal.reason, str(refusal)))
        scores[reply.client] = reply
        return reply

    def _keep_best(self) -> None:
        """A mean over fewer sites is not comparable: more sites come first, then the better value."""
        sign, metric = (-1, self.fed.keep_best[1:]) if self.fed.keep_best[:1] == "-" else (1, self.fed.keep_best)
        now, scores = self.now, _scores(self.now).values()
        sites = sum(metric in metrics and weight > 0 for metrics, weight in scores)
        if not sites:
            return
        value = sign * next(r["value"] for r in mean_rows(now.round, scores) if r["metric"] == metric)
        if now.best_value is None or (sites, value) > (now.best_sites, now.best_value):
            now.best, now.best_round, now.best_value, now.best_sites = now.x, now.round, value, sites

    def _cohort(self, number: int, attempt: int) -> list[str]:
        """`per_round` sites, drawn anew for each round and attempt: those whose derived seeds are lowest."""
        drawn = sorted(self.sites, key=lambda name: derive(self.fed.seed, "cohort", number, attempt, name))
        return sorted(drawn[: self.asked])

    def _settings(self, layout: str) -> dict[str, Any]:
        """What must not change between the beginning of a run and its end."""
        settings = {
            "strategy": self.strategy,
            "seed": self.fed.seed,
            "per_round": self.fed.per_round,
            "keep_best": self.fed.keep_best,
            "sites": self.sites,
            "layout": layout,
        }
        return dict(json.loads(json.dumps(settings)))  # as a checkpoint gives it back

    def _save(self) -> None:
        if self.folder:
            with self.folder.writing():
                self.now.audit = self.witness.seal()
            self.folder.commit(self.now, self.history)

    def _commit(self) -> None:
        self._save()
        if self.folder:  # the run may be long; a checkpoint costs more than this
            give_back()
        self._tell_rows("saved")

    def _tell_rows(self, kind: Literal["resumed", "saved"]) -> None:
        fresh, self._told = tuple(self.history.rows[self._told :]), len(self.history.rows)
        self.tell(Event(kind, self.now.round, rows=fresh))


def _may_wait(fed: "Federation") -> bool:
    """Does the next round begin without a look at the scores? Under "matrix" one message would be too large."""
    decides = any(isinstance(layer, KeepBest | FedBuff) for layer in nested(fed.strategy))
    return fed.evaluate == "global" and not decides


def _scores(checkpoint: Checkpoint) -> Scores:
    return {site: (metrics, weight) for site, (metrics, weight) in checkpoint.scores.items()}


def _score_rows(number: int, scores: Scores) -> list[Row]:
    """A row per site and metric, then the means over the sites."""
    rows = [row(number, site, m, v) for site, (metrics, _) in scores.items() for m, v in metrics.items()]
    return rows + mean_rows(number, scores.values())
