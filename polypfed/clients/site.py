"""Site: the shell around a Client that every backend runs. It answers every task, keeps state, and never raises."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from polypfed.clients.base import Client
from polypfed.clients.discreet import discreet
from polypfed.clients.guard import Charter, Guard
from polypfed.clients.states import States
from polypfed.core.errors import (
    AuditError,
    CheckpointError,
    DataError,
    MissingExtraError,
    PolypfedError,
    Refused,
    StateError,
)
from polypfed.core.messages import Evaluation, Failure, Reply, Task, Update, one_line, sound, stamp
from polypfed.privacy.errors import BudgetExhausted
from polypfed.strategies.base import Strategy
from polypfed.strategies.registry import Registry

log = logging.getLogger(__name__)
R = TypeVar("R", Update, Evaluation)


class Site:
    """One client and its transactional state.

    A client's state after round r counts only once the server says that the update of round r was accepted
    (`task.config["accepted"]`); until then it is pending, and is dropped if a later task says otherwise.

    Args:
        client: what trains.
        directory: where the state is kept across restarts; in memory if None.
        charter: what the site's owner has laid down; None has no policy, and keeps a log in `directory`.
    """

    def __init__(self, client: Client, directory: Path | None = None, charter: Charter | None = None) -> None:
        self.client = self._work = client
        self._strategy: Any = None  # the description under which `_work` was made
        self._directory = directory
        self._states = States(directory / "state" if directory else None)
        self._guard = Guard(client.name, charter or Charter.below(directory))
        self._holds: int | None = None  # the round after which the client object was in its present state, if known

    @property
    def name(self) -> str:
        """The client's name."""
        return self.client.name

    def perform(self, task: Task, fit: Callable[[Task], Update] | None = None) -> Reply:
        """The client's answer to `task`; whatever goes wrong becomes a Failure.

        Args:
            fit: what answers in place of the client's own method; a trainer of several clients at once.
        """
        try:
            reply: Reply = self._guard.close(task, self._done(task, fit))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - one site's mistake must not end the federation
            reply = self._failed(task, error)
        try:
            self._guard.note(task, reply)  # before anything leaves
        except (PolypfedError, OSError) as error:
            return self._failed(task, error)
        return stamp(reply, task.run)

    def prepare(self, task: Task) -> Client | Failure:
        """The client as `perform` would have it train: dressed for the strategy, in the state the server counts."""
        try:
            self._permit(task)
            self._adopt(task)
            self._settle(int(task.config.get("accepted", 0)))
            return self._work
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
            return self._failed(task, error)

    def _failed(self, task: Task, error: BaseException) -> Failure:
        reason = _reason(error)
        detail = one_line(error if isinstance(error, PolypfedError) else f"{type(error).__name__}: {error}")
        log.error("%s, round %d: %s", self.name, task.round, detail, exc_info=error if reason == "crashed" else None)
        return Failure(self.name, task.round, reason, discreet(error), task.run)

    def _permit(self, task: Task) -> None:
        self._guard.permit(task, self.client, self._directory / "selection" if self._directory else None)

    def _done(self, task: Task, fit: Callable[[Task], Update] | None) -> Update | Evaluation:
        if fit is None:  # else `prepare` has asked already
            self._permit(task)
        if task.kind == "step":
            self._adopt(task)
            return self._tidy(self._work.fit(task), Update)
        return self._fit(task, fit) if task.kind == "fit" else self._evaluate(task)

    def _adopt(self, task: Task) -> None:
        """Dress the client as the task's strategy needs it."""
        description = task.config.get("strategy")
        stages = task.config.get("stages", {}).get("list")
        name = (description, stages)
        if description is not None and name != self._strategy:
            strategy = Registry.build(description)
            self._work = strategy.at_site(self.client) if stages is None else self._staged(strategy, task)
            self._strategy, self._holds = name, None

    def _staged(self, strategy: Strategy, task: Task) -> Client:
        """The client behind the stages that the task names."""
        from polypfed.clients.blind import BlindClient
        from polypfed.clients.outbox import build
        from polypfed.clients.packed import PackedClient
        from polypfed.clients.staged import MaskedClient, StagedClient
        from polypfed.privacy.stage import Quantise

        about = task.config["stages"]
        stages = build(about["list"])
        kinds = {stage.kind for stage in stages}
        if not kinds & {"encrypt", "mask"}:
            rounded = any(isinstance(stage, Quantise) for stage in stages)
            in_clear = PackedClient if rounded else StagedClient
            return in_clear(self.client, strategy, stages, int(about["sites"]))
        keys = self._guard.charter.keys
        if self._directory is None or keys is None:
            raise StateError("has no folder, and keys need one", where=self.name)
        if "encrypt" in kinds:
            return BlindClient(self.client, strategy, stages, keys, self._directory / "model.safetensors")
        return MaskedClient(self.client, strategy, stages, keys)

    def _fit(self, task: Task, fit: Callable[[Task], Update] | None) -> Update:
        self._adopt(task)
        accepted = int(task.config.get("accepted", 0))
        self._settle(accepted)
        self._holds = None
        update = self._tidy((fit or self._work.fit)(task), Update)
        state = self._work.state()
        if state and accepted and accepted not in self._states:  # it keeps state, and what it kept is gone
            raise self._lost(accepted)
        self._states.add(task.round, state)
        self._holds = task.round
        return update

    def _evaluate(self, task: Task) -> Evaluation:
        """Metrics of "model", and of every "model@NAME" as "metric@NAME"."""
        self._adopt(task)
        if "accepted" in task.config:
            self._settle(int(task.config["accepted"]))
        result = self._tidy(self._work.evaluate(task), Evaluation)
        metrics = dict(result.metrics)
        for key in sorted(task.vectors):
            if key.startswith("model@"):
                config = {**task.config, "of": key[6:]}
                other = replace(task, vectors={"model": task.vectors[key]}, config=config)
                scores = self._tidy(self._work.evaluate(other), Evaluation).metrics
                metrics |= {f"{k}@{key[6:]}": v for k, v in scores.items()}
        return replace(result, metrics=metrics)

    def _settle(self, accepted: int) -> None:
        """Put the client into its state after round `accepted`; what it kept since then is dropped."""
        if accepted and self._states and accepted not in self._states:
            raise self._lost(accepted)
        self._states.drop_after(accepted)
        if self._holds != accepted:
            self._holds = None
            self._work.restore(self._states.get(accepted))
            self._holds = accepted

    def _tidy(self, reply: R, kind: type[R]) -> R:
        """The reply with plain numbers, if it is one and names this site."""
        if not isinstance(reply, kind):
            raise TypeError(f"{type(reply).__name__} returned, not an {kind.__name__}")
        if reply.client != self.name:
            raise Refused("unknown-client", f"the reply names itself {reply.client!r}", where=self.name)
        metrics = {k: _plain(v) for k, v in reply.metrics.items()} if isinstance(reply.metrics, Mapping) else None
        if not sound(metrics):
            raise Refused("metrics", "a metric is not a finite number under a plain name", where=self.name)
        return replace(reply, metrics=metrics, weight=_plain(reply.weight))

    def _lost(self, accepted: int) -> StateError:
        return StateError(
            f"the server counts round {accepted} as this site's last, the site's own state is of another",
            where=self.name,
            remedy="Give the site its state folder back, or start the run anew",
        )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (DataError, "data"),
    (StateError, "state"),
    (CheckpointError, "state"),
    (AuditError, "audit"),
    (BudgetExhausted, "budget"),
    (MissingExtraError, "extra"),
    (PolypfedError, "client"),
    (MemoryError, "memory"),
)


def _reason(error: BaseException) -> str:
    if isinstance(error, Refused):
        return error.reason
    return next((word for kind, word in _WORDS if isinstance(error, kind)), "crashed")
