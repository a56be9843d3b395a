"""A site that makes the strategy's steps itself: it holds the model, and moves it by the sum of each round."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polypfed.clients.base import Client
from polypfed.clients.outbox import Outbox, initial_of, plan_of
from polypfed.core.errors import LayoutError, StateError
from polypfed.core.gate import norm_of
from polypfed.core.messages import Task
from polypfed.core.model import Vector, fixed, shared
from polypfed.core.pack import pack_state, unpack_inner, unpack_state
from polypfed.core.reduce import BUFFERS
from polypfed.privacy.quantise import Grid
from polypfed.privacy.slots import Integers
from polypfed.privacy.stage import At, Stage
from polypfed.strategies.base import Cohort, State, Strategy

_PACKED = "packed"


@dataclass(frozen=True)
class Position:
    """Where a run stands: all that a site must know to go on by sums alone.

    Attributes:
        round: the last server round in it.
        x: the model, (P,); state: the strategy's.
        grid: of the next round's updates; reference: the mean of the last one, None before there is one.
    """

    round: int
    x: Vector
    state: State
    grid: Grid
    reference: Vector | None = None

    def pack(self, kept: Mapping[str, Vector] | None = None) -> bytes:
        """As bytes, with what a site keeps beside it."""
        numbers = {k: v for k, v in self.state.items() if not isinstance(v, np.ndarray)}
        about = {"round": self.round, "grid": self.grid.to_json(), "numbers": numbers}
        vectors = {f"state.{k}": v for k, v in self.state.items() if isinstance(v, np.ndarray)}
        vectors |= {"x": self.x} | ({} if self.reference is None else {"reference": self.reference})
        vectors |= {f"kept.{k}": v for k, v in (kept or {}).items()}
        return pack_state(vectors, json.dumps(about).encode())

    @classmethod
    def unpack(cls, data: bytes) -> tuple["Position", dict[str, Vector]]:
        """The inverse of `pack`, and what was kept beside it."""
        vectors, about = unpack_state(data), json.loads(unpack_inner(data))
        state = {k[6:]: v for k, v in vectors.items() if k.startswith("state.")} | about["numbers"]
        grid, kept = Grid.from_json(about["grid"]), {k[5:]: v for k, v in vectors.items() if k.startswith("kept.")}
        return cls(int(about["round"]), fixed(vectors["x"]), state, grid, vectors.get("reference")), kept


class Follower(ABC):
    """What is common to clients that follow a run by its sums.

    Args:
        client: what trains; it must have `initial`, which is where a run begins.
        strategy: run here, by the same pure `step` at every site.
        stages: as the task describes them; one of them is Quantise.
        sites: in the run.

    Raises:
        ConfigError: the client has no `initial`.
    """

    def __init__(self, client: Client, strategy: Strategy, stages: tuple[Stage, ...], sites: int) -> None:
        self.client, self.name, self._inner = client, client.name, strategy.at_site(client)
        self._strategy, self._sites = strategy, sites
        layout, x = initial_of(client)
        self.spec = strategy.wire(layout)
        self.first = x if self.spec is layout else x[layout.places({p.name for p in self.spec.parts})]
        self.plan = plan_of(strategy, layout, stages, sites)
        self.outbox = Outbox(self.plan, strategy, client.name)
        self._begin()

    def _begin(self) -> None:
        x = fixed(self.first.copy())
        self.at = Position(0, x, self._strategy.init(x[self.spec.trainable]), self.plan.first_grid(x))
        self.outbox.kept = {}

    def _vectors(self) -> Mapping[str, Vector]:
        """What the client gets, as if it came from a server that holds the model."""
        x = self.at.x
        return shared({"model": x, **self._strategy.broadcast(x[self.spec.trainable], self.at.state)})

    def _take_in(self, task: Task) -> None:
        """Take every step between this site's model and the one that is asked for.

        Raises:
            StateError: the sums between do not lead there.
        """
        about = task.config["stages"]
        for number in sorted(int(n) for n in about["sums"]):
            if number == self.at.round + 1:
                told = about["sums"][str(number)]
                names = tuple(told["clients"])
                if names:
                    self._follow(number, self._sum(task, number, told), names, int(about["seed"]))
                else:
                    self.at = replace(self.at, round=number)
        wanted = int(about["base"])
        if self.at.round != wanted:
            raise StateError(
                f"holds the model of round {self.at.round}, round {wanted} is asked for", where=self.name,
                remedy="The server sends the rounds between, or the whole; ask the site that keeps them",
            )  # fmt: skip

    @abstractmethod
    def _sum(self, task: Task, number: int, about: Mapping[str, Any]) -> Integers:
        """The sum of a round, as the task carries it."""

    def _follow(self, number: int, total: Integers, names: tuple[str, ...], seed: int) -> None:
        """One step, by the sum of these sites' updates."""
        decoded = self.plan.codec(self.at.grid).decode(total, expect=len(names))
        where = At(seed, number, reference=self.at.reference)
        mean = self.plan.pipeline.backward(decoded.mean, where, self.plan.length)
        parts, now = self.plan.split(mean), self.at
        buffers = self.spec.moved_buffers(now.x, parts.pop(BUFFERS))
        cohort = Cohort(number, names, (1,) * len(names), self._sites)
        moved, state = self._strategy.step(now.x[self.spec.trainable], shared(now.state), parts, cohort)
        x = np.concatenate([moved, buffers])
        if x.shape != now.x.shape or np.isnan(norm_of(x)):
            raise LayoutError("the new model is not finite", where="strategy", remedy="Lower its learning rate")
        self.at = Position(number, fixed(x), state, now.grid.following(decoded.spans), mean)

    def state(self) -> bytes:
        """The position, what the stages keep, and the inner client's state."""
        packed = np.frombuffer(self.at.pack(self.outbox.kept), np.uint8)
        return pack_state({_PACKED: packed}, self._inner.state())  # type: ignore[dict-item]  # bytes travel as uint8

    def restore(self, state: bytes) -> None:
        """The inverse of `state`; nothing is the beginning."""
        if state:
            self.at, self.outbox.kept = Position.unpack(unpack_state(state)[_PACKED].tobytes())
        else:
            self._begin()
        self._inner.restore(unpack_inner(state))
