"""The round engine under secure aggregation: five exchanges a round, and the server learns the sum only."""

import numpy as np

from polypfed.clients.masking import group_of
from polypfed.core.errors import Refused
from polypfed.core.gate import SealedGate
from polypfed.core.messages import Failure, Task
from polypfed.core.model import Vector, nbytes, shared
from polypfed.federation.collect import Collected, admit, config_for
from polypfed.federation.masking import Masking, Summed, as_arrays, give_up
from polypfed.federation.protocol import Event
from polypfed.federation.staged import StagedEngine
from polypfed.privacy.masked import MaskedSum


class MaskedEngine(StagedEngine):
    """One run under secure aggregation.

    keys -> shares -> masked updates -> the survivors sign who they are -> shares that open the sum, and nothing else.
    A site that is lost after the second exchange does not hold up the round.
    """

    def _collect(self, number: int, attempt: int) -> Collected:
        names = self._cohort(number, attempt)
        got = _Masked(self, number, names)
        group = group_of(self.now.run, number, attempt, self.roster, tuple(names), self.plan)
        try:
            self._attempt(got, Masking(self, got, group))
        except Refused as refusal:
            give_up(self, got, refusal)
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
            got.spans = decoded.spans

    def _train(self, got: "_Masked", masking: Masking) -> None:
        """The third exchange: sites train, and send masked updates."""
        x, state, number = self.now.x, shared(self.now.state), got.number
        model = shared({"model": x, **self.fed.strategy.broadcast(x[self.now.spec.trainable], state)})
        stages = self._about(**masking.about, phase="mask", grid=self._grid.to_json())
        about = {"stages": stages, "cohort": len(masking.inbox)}
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

    def _mean(self, got: Collected) -> dict[str, Vector]:
        assert isinstance(got, _Masked)
        if got.mean is None:
            return self.plan.split(np.zeros(self.plan.length, np.float32))
        self.now.privacy = self.now.privacy | {"grid": self._grid.following(got.spans).to_json()}
        return self._split(got.mean)


class _Masked(Summed):
    """One attempt."""

    total: MaskedSum
    mean: Vector | None = None
    spans: tuple[float, ...] = ()
