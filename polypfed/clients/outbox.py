"""What a site does to its update before it leaves, under stages: one flat vector, the float stages, rounding."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from polypfed.clients.base import Client, HasInitial
from polypfed.core.errors import ConfigError, LayoutError
from polypfed.core.gate import norm_of
from polypfed.core.messages import Task, Update
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.reduce import Mean
from polypfed.privacy.dp import AdaptiveNorm
from polypfed.privacy.plan import Plan
from polypfed.privacy.quantise import Codec, Encoded
from polypfed.privacy.stage import At, Clip, Encrypt, Mask, Noise, Quantise, RandomK, Stage, TopK
from polypfed.strategies.base import Strategy, uploads
from polypfed.strategies.registry import Registry

for _kind in (Clip, Noise, RandomK, TopK, Quantise, Encrypt, Mask, AdaptiveNorm):
    Registry.add(_kind)


def describe(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """The stages as JSON values."""
    return [Registry.plain(stage) for stage in stages]


def build(description: Sequence[Mapping[str, Any]]) -> tuple[Stage, ...]:
    """The inverse of `describe`.

    Raises:
        ConfigError: a name or setting is unknown or out of range.
    """
    return tuple(cast(Stage, Registry.revive(item, f"stages.{i}")) for i, item in enumerate(description))


def plan_of(strategy: Strategy, layout: ModelSpec, stages: Sequence[Stage], sites: int) -> Plan:
    """What is sent under these; `layout`: of the whole model."""
    spec = strategy.wire(layout)
    return Plan.of(spec, uploads(strategy, spec.boundary), strategy.reducer, stages, sites)


def initial_of(client: Client) -> tuple[ModelSpec, Vector]:
    """The layout and the model that a client starts from.

    Raises:
        ConfigError: it has no `initial`; stages work on a layout that the site itself knows.
    """
    if not isinstance(client, HasInitial):
        raise ConfigError("has no initial(), which stages take the layout and the first model from", where=client.name)
    return client.initial()


class Outbox:
    """The stages at one site, and what they keep between rounds."""

    def __init__(self, plan: Plan, strategy: Strategy, name: str) -> None:
        self.plan, self.name = plan, name
        self._reducer = strategy.reducer
        self.kept: dict[str, Vector] = {}
        self._before: dict[str, Vector] = {}

    def flat(self, update: Update, at: At) -> tuple[Vector, bool]:
        """The vector behind the float stages, and whether clipping left it as it was.

        Raises:
            LayoutError: the update is not finite.
        """
        scale = np.float32(self._reducer.scale(update)) if isinstance(self._reducer, Mean) else np.float32(1)
        delta = update.vectors["delta"].copy()
        delta[self.plan.spec.trainable] *= scale
        vector = self.plan.join({**update.vectors, "delta": delta})
        norm = norm_of(vector)
        if np.isnan(norm):
            raise LayoutError("the update is not finite", where=self.name, remedy="Lower the learning rate")
        clip = self.plan.pipeline.find(Clip)
        self._before = self.kept
        out, kept = self.plan.pipeline.forward(vector, self._before, at)
        self.kept = self._without_levels(kept)
        return np.ascontiguousarray(out, np.float32), clip is None or norm <= clip.bound(at)

    def slots(self, codec: Codec, vector: Vector, weight: int, at: At) -> Encoded:
        """What `flat` gave, on the grid; what rounding loses is kept for the next round."""
        encoded, kept = self.plan.pipeline.encode(codec, vector, weight, self._before, self.kept, at)
        self.kept = self._without_levels(kept)
        return encoded

    def _without_levels(self, kept: Mapping[str, Vector]) -> dict[str, Vector]:
        """No residual of BatchNorm's statistics: the next delta holds what this one lost, and twice is too far."""
        found = dict(kept)
        for name, residual in kept.items():
            if self.plan.buffers and residual.size == self.plan.length:
                found[name] = residual.copy()
                found[name][self.plan.spec.buffers] = 0
        return found


def at_site(task: Task, name: str, reference: Vector | None = None) -> At:
    """Where in the run a task is, as its config says."""
    about = task.config["stages"]
    given = task.vectors.get("reference", reference)
    return At(
        seed=int(about["seed"]), round=task.round, site=name, reference=given, norm=about.get("norm"),
        simulate=bool(about.get("simulate", False)),
    )  # fmt: skip
