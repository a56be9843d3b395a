"""Sites whose updates pass through stages in the clear (clip, noise, fewer values) or under pairwise masks."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from polypfed.clients.base import Client
from polypfed.clients.outbox import Outbox, at_site, grid_of, plan_of
from polypfed.core.errors import ConfigError, StateError
from polypfed.core.messages import Evaluation, Task, Update
from polypfed.core.pack import pack_state, unpack_inner, unpack_state
from polypfed.privacy.keyring import open_keys
from polypfed.privacy.keys import job_id
from polypfed.privacy.masked import seal_masked
from polypfed.privacy.masks import Ring
from polypfed.privacy.plan import Plan, as_vectors
from polypfed.privacy.roster import Roster
from polypfed.privacy.secagg import Group, MaskingSite
from polypfed.privacy.stage import Mask, Stage
from polypfed.strategies.base import Strategy


class StagedClient:
    """A client whose update leaves as one flat vector, "sent", behind the float stages."""

    def __init__(self, client: Client, strategy: Strategy, stages: tuple[Stage, ...], sites: int) -> None:
        initial: Any = getattr(client, "initial", None)
        if initial is None:
            raise ConfigError("has no initial(), which gives the layout that stages work on", where=client.name)
        self.client, self.name, self._inner = client, client.name, strategy.at_site(client)
        self.plan = plan_of(strategy, initial()[0], stages, sites)
        self.outbox = Outbox(self.plan, strategy, client.name)

    def fit(self, task: Task) -> Update:
        """Train, then pass the update through the stages."""
        update = self._inner.fit(self._plain(task))
        sent, unclipped = self.outbox.flat(update, at_site(task, self.name))
        vectors = {"sent": sent, "unclipped": np.full(1, unclipped, np.float32)}
        return replace(update, vectors=vectors)

    def evaluate(self, task: Task) -> Evaluation:
        """The client's own."""
        return self._inner.evaluate(self._plain(task))

    def _plain(self, task: Task) -> Task:
        """The task as the client knows it."""
        ours = ("reference", "sealed", "keys", "share", "mask")
        return replace(task, vectors={k: v for k, v in task.vectors.items() if k.partition(".")[0] not in ours})

    def state(self) -> bytes:
        """What the stages keep, and the client's state."""
        return pack_state(self.outbox.kept, self._inner.state())

    def restore(self, state: bytes) -> None:
        """The inverse of `state`."""
        self.outbox.kept = unpack_state(state)
        self._inner.restore(unpack_inner(state))


def group_of(run: str, number: int, attempt: int, roster: Roster, names: tuple[str, ...], plan: Plan) -> Group:
    """Who masks together in this attempt, equal at the server and at every site."""
    mask, layout = plan.pipeline.find(Mask), plan.pipeline.layout
    if mask is None or layout is None:
        raise ConfigError("nothing is masked", where="stages")
    ring = Ring(layout[0].modulus)
    return Group(job_id(run), number, attempt, roster, names, mask.of(len(names)), ring, plan.codec().size)


class MaskedClient(StagedClient):
    """A client under secure aggregation: the steps of an attempt, in order, by the task's phase.

    The secrets of an attempt live in this object only. A site that was restarted in the middle of one is lost for it.
    """

    def __init__(self, client: Client, strategy: Strategy, stages: tuple[Stage, ...], keys: Path) -> None:
        self.identity, self.roster = open_keys(keys)
        super().__init__(client, strategy, stages, len(self.roster.names))
        self._attempt: tuple[int, int] = (0, 0)
        self._masking: MaskingSite | None = None

    def fit(self, task: Task) -> Update:
        """One step of the attempt; training is part of the third."""
        about = task.config["stages"]
        step = {"keys": self._keys, "shares": self._shares, "mask": self._mask}
        step |= {"confirm": self._confirm, "reveal": self._reveal}
        vectors, metrics, weight = step[about["phase"]](task, about)
        return Update(self.name, task.round, vectors, weight, metrics)

    def _site(self, task: Task, about: Mapping[str, Any]) -> MaskingSite:
        if self._masking is None or self._attempt != (task.round, int(about["attempt"])):
            raise StateError("was restarted in the middle of an attempt", where=self.name)
        return self._masking

    def _keys(self, task: Task, about: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float], int]:
        names = tuple(about["group"])
        group = group_of(task.run, task.round, int(about["attempt"]), self.roster, names, self.plan)
        self._attempt, self._masking = (task.round, int(about["attempt"])), MaskingSite(group, self.identity)
        return {"keys": _bytes(self._masking.keys())}, {}, 0

    def _shares(self, task: Task, about: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float], int]:
        advertised = {k.partition(".")[2]: v.tobytes() for k, v in task.vectors.items() if k.startswith("keys.")}
        shares = self._site(task, about).shares(advertised)
        return {f"share.{peer}": _bytes(data) for peer, data in shares.items()}, {}, 0

    def _mask(self, task: Task, about: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float], int]:
        site, at = self._site(task, about), at_site(task, self.name)
        sealed = {k.partition(".")[2]: v.tobytes() for k, v in task.vectors.items() if k.startswith("share.")}
        update = self._inner.fit(self._plain(task))
        if not update.weight:
            return {}, dict(update.metrics), 0
        vector, _ = self.outbox.flat(update, at)
        encoded = self.outbox.slots(self.plan.codec(grid_of(about["grid"])), vector, update.weight, at)
        masked = site.mask(encoded.slots, sealed)
        number = self.roster.number(self.name)
        frames = list(seal_masked(masked, site.group, number, self.identity.signer))
        return as_vectors("frame", frames), dict(update.metrics), 1

    def _confirm(self, task: Task, about: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float], int]:
        return {"signature": _bytes(self._site(task, about).confirm(about["survivors"]))}, {}, 0

    def _reveal(self, task: Task, about: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float], int]:
        signatures = {n: bytes.fromhex(s) for n, s in about["signatures"].items()}
        reveal = self._site(task, about).reveal(signatures)
        self._masking = None
        return {"reveal": _bytes(json.dumps(reveal.to_json()).encode())}, {}, 0


def _bytes(data: bytes) -> Any:
    return np.frombuffer(data, np.uint8)
