"""Sites whose updates pass through stages in the clear (clip, noise, fewer values) or under pairwise masks."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from polypfed.clients.base import Client
from polypfed.clients.masking import Steps
from polypfed.clients.outbox import Outbox, at_site, initial_of, plan_of
from polypfed.core.messages import Evaluation, Task, Update
from polypfed.core.pack import pack_state, unpack_inner, unpack_state
from polypfed.privacy.keyring import open_keys
from polypfed.privacy.masked import seal_masked
from polypfed.privacy.plan import as_vectors
from polypfed.privacy.quantise import Grid
from polypfed.privacy.stage import Stage
from polypfed.strategies.base import Strategy


class StagedClient:
    """A client whose update leaves as one flat vector, "sent", behind the float stages."""

    def __init__(self, client: Client, strategy: Strategy, stages: tuple[Stage, ...], sites: int) -> None:
        self.client, self.name, self._inner = client, client.name, strategy.at_site(client)
        self.plan = plan_of(strategy, initial_of(client)[0], stages, sites)
        self.outbox = Outbox(self.plan, strategy, client.name)

    def fit(self, task: Task) -> Update:
        """Train, then pass the update through the stages."""
        update = self._inner.fit(self._plain(task))
        sent, unclipped = self.outbox.flat(update, at_site(task, self.name))
        said = {"unclipped": np.full(1, unclipped, np.float32)} if self.plan.adaptive else {}
        return replace(update, vectors={"sent": sent, **said})

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


class MaskedClient(StagedClient):
    """A client under secure aggregation: the steps of an attempt, in order; training is part of the third."""

    def __init__(self, client: Client, strategy: Strategy, stages: tuple[Stage, ...], keys: Path) -> None:
        self.identity, self.roster = open_keys(keys)
        super().__init__(client, strategy, stages, len(self.roster.names))
        self._steps = Steps(self.plan, self.identity, self.roster)

    def fit(self, task: Task) -> Update:
        """One step of the attempt."""
        if task.kind == "step":
            return self._steps.take(task)
        update = self._inner.fit(self._plain(task))
        if not update.weight:
            return replace(update, vectors={}, weight=0)
        at, about = at_site(task, self.name), task.config["stages"]
        vector, _ = self.outbox.flat(update, at)
        encoded = self.outbox.slots(self.plan.codec(Grid.from_json(about["grid"])), vector, update.weight, at)
        masked = self._steps.mask(task, encoded.slots)
        frames = seal_masked(masked, self._steps.group, self.roster.number(self.name), self.identity.signer)
        return replace(update, vectors=as_vectors("frame", list(frames)), weight=1)
