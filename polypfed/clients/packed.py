"""A site whose rounded updates travel in clear: few bytes leave it, and the sum of all sites comes back, no model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from polypfed.clients.following import Follower, Position
from polypfed.clients.outbox import at_site
from polypfed.core.audit import sha256
from polypfed.core.errors import StateError
from polypfed.core.messages import Evaluation, Task, Update
from polypfed.core.signing import base_of
from polypfed.privacy.deflate import deflate, inflate
from polypfed.privacy.slots import Integers


class PackedClient(Follower):
    """The client half of a packed federation; see `federation.packed`."""

    def fit(self, task: Task) -> Update:
        """Take in what came, train, and send the update rounded; or, asked for it, say where this site begins."""
        if task.kind == "step":
            begins = np.frombuffer(bytes.fromhex(sha256(self.first.data)), np.uint8)
            return Update(self.name, task.round, {"id": begins}, 0)  # type: ignore[dict-item]  # bytes travel as uint8
        self._take_in(task)
        update = self._inner.fit(replace(task, vectors=self._vectors()))
        if not update.weight:
            return replace(update, vectors={})
        at = at_site(task, self.name, self.at.reference)
        vector, _ = self.outbox.flat(update, at)
        codec = self.plan.codec(self.at.grid)
        encoded = self.outbox.slots(codec, vector, update.weight, at)
        levels = np.frombuffer(deflate(encoded.slots, codec.slots), np.uint8)
        return replace(update, vectors={"levels": levels})  # type: ignore[dict-item]  # as above

    def evaluate(self, task: Task) -> Evaluation:
        """Take in what came, and score the model."""
        self._take_in(task)
        return self._inner.evaluate(replace(task, vectors={"model": self.at.x}))

    def _take_in(self, task: Task) -> None:
        """As ever; the whole comes to a site that is not where the server thinks, and the result must be its model."""
        whole = task.vectors.get("whole")
        if whole is not None:
            self.at, _ = Position.unpack(whole.tobytes())
        super()._take_in(task)
        if sha256(self.at.x.data) != base_of(task):
            raise StateError(
                f"came to another model of round {self.at.round} than the server", where=self.name,
                remedy="The server sends the whole with the next round",
            )  # fmt: skip

    def _sum(self, task: Task, number: int, about: Mapping[str, Any]) -> Integers:
        data = task.vectors.get(f"sum.{number}")
        if data is None:
            raise StateError(f"the sum of round {number} did not come", where=self.name)
        codec = self.plan.codec(self.at.grid)
        return inflate(data.tobytes(), codec.size, codec.slots, len(about["clients"]))
