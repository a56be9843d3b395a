"""The round engine under secure aggregation: five exchanges a round, and the server learns the sum only."""

from typing import Any

import numpy as np

from polypfed.clients.masking import group_of
from polypfed.core.errors import Refused
from polypfed.core.gate import SealedGate
from polypfed.core.messages import Failure, Task, Update
from polypfed.core.model import Vector, nbytes, shared
from polypfed.federation.collect import Collected, admit, config_for, record
from polypfed.federation.masking import Masking, as_arrays
from polypfed.federation.protocol import Event
from polypfed.federation.staged import StagedEngine
from polypfed.privacy.errors import FrameRefused
from polypfed.privacy.masked import MaskedSum
from polypfed.privacy.plan import from_vectors
from polypfed.privacy.quantise import Grid
from polypfed.privacy.secagg import LEAST
from polypfed.privacy.stage import Mask


class MaskedEngine(StagedEngine):
    """One run under secure aggregation.

    keys -> shares -> masked updates -> the survivors sign who they are -> shares that open the sum, and nothing else.
    A site that is lost after the second exchange does not hold up the round.
    """

    @property
    def least(self) -> int:
        """A sum of fewer cannot be opened."""
        mask = self.plan.pipeline.find(Mask)
        assert mask is not None
        return max(LEAST, mask.of(self.asked), super().least)

    def _collect(self, number: int, attempt: int) -> Collected:
        names = self._cohort(number, attempt)
        got = _Masked(self, number, names)
        group = group_of(self.now.run, number, attempt, self.roster, tuple(names), self.plan)
        try:
            self._attempt(got, Masking(self, got, group))
        except Refused as refusal:
            record(self, Failure(str(refusal.where or ""), number, refusal.reason, str(refusal)))
            got.accepted.clear()
        return got

    def _attempt(self, got: "_Masked", masking: Masking) -> None:
        masking.prepare()
        got.total = MaskedSum(masking.group, self.roster.verifiers)
        self._train(got, masking)
        survivors = got.total.participants
        if len(survivors) >= self.least:
            slots = masking.finish(survivors).remove(got.total.total)
            decoded = self.plan.codec(self._grid).decode(slots, expect=len(survivors))
            at = self._at(got.number, len(survivors))
            got.mean = self.plan.pipeline.backward(decoded.mean, at, self.plan.length)
            got.peaks = decoded.peaks

    def _train(self, got: "_Masked", masking: Masking) -> None:
        """The third exchange: sites train, and send masked updates."""
        x, state, number = self.now.x, shared(self.now.state), got.number
        model = shared({"model": x, **self.fed.strategy.broadcast(x[self.now.spec.trainable], state)})
        grid = {"bounds": list(self._grid.bounds), "sizes": list(self._grid.sizes)}
        about = {"stages": self._about(**masking.about, phase="mask", grid=grid)}
        limit, tasks = 8 * self.plan.codec().size + (1 << 20), {}
        for name, shares in sorted(masking.inbox.items()):
            vectors = {**model, **self._more_vectors(), **as_arrays(shares)}
            tasks[name] = Task(number, "fit", vectors, config_for(self, number, name, limit) | about)
        got.down += sum(nbytes(task.vectors) for task in tasks.values())
        gate = SealedGate(self.now.run, number, frozenset(tasks), {}, 1.0)
        for reply in self.backend.exchange(tasks, self.fed.deadline):
            checked = got.take(self, admit(self, gate, reply))
            got.failed += isinstance(checked, Failure)
            self.tell(Event("fit", number, reply.client, checked))

    @property
    def _grid(self) -> Grid:
        kept = self.now.privacy.get("grid")
        if kept is None:
            return self.plan.first_grid(self.now.x)
        return Grid(tuple(kept["bounds"]), tuple(kept["sizes"]))

    def _mean(self, got: Collected) -> dict[str, Vector]:
        assert isinstance(got, _Masked)
        if got.mean is None:
            return self.plan.split(np.zeros(self.plan.length, np.float32))
        following = self._grid.following(got.peaks)
        self.now.privacy = self.now.privacy | {"grid": {"bounds": following.bounds, "sizes": following.sizes}}
        return self._split(got.mean)


class _Masked(Collected):
    """One attempt."""

    total: MaskedSum | None = None
    mean: Vector | None = None
    peaks: tuple[float, ...] = ()

    def _lengths(self, engine: Any) -> dict[str, int]:
        return {}

    def take(self, engine: MaskedEngine, reply: Update | Failure) -> Update | Failure:
        """Add all frames of one site, or none."""
        if isinstance(reply, Failure):
            return reply
        assert self.total is not None
        number, complete = engine.roster.number(reply.client), None
        try:
            for frame in from_vectors("frame", reply.vectors):
                complete = self.total.add(frame)
            if reply.weight and complete != number:
                raise FrameRefused("incomplete", "frames are missing, or are another site's", where=reply.client)
        except Refused as refusal:
            self.total.drop(number)
            return record(engine, Failure(reply.client, self.number, refusal.reason, str(refusal)))
        self.accepted[reply.client], self.metrics[reply.client] = reply.weight, dict(reply.metrics)
        self.rounds[reply.client] = reply.round
        self.up += nbytes(reply.vectors)
        return reply
