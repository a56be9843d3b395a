"""The round engine under secure aggregation: five exchanges a round, and the server learns the sum only."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from polypfed.clients.staged import group_of
from polypfed.core.errors import MessageError, Refused
from polypfed.core.gate import SealedGate
from polypfed.core.messages import Failure, Task, Update, strict_json
from polypfed.core.model import Vector, nbytes, shared
from polypfed.federation.collect import Collected, admit, config_for, record
from polypfed.federation.protocol import Event
from polypfed.federation.staged import StagedEngine
from polypfed.privacy.errors import FrameRefused
from polypfed.privacy.masked import MaskedSum
from polypfed.privacy.plan import from_vectors
from polypfed.privacy.quantise import Grid
from polypfed.privacy.secagg import LEAST, Group, Reveal, Unmasking, read_keys
from polypfed.privacy.stage import Mask

Bytes = dict[str, dict[str, bytes]]


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
        about = {"attempt": attempt, "group": names}
        try:
            self._attempt(got, group, about)
        except Refused as refusal:
            record(self, Failure(refusal.where or "", number, refusal.reason, str(refusal)))
            got.accepted.clear()
        return got

    def _attempt(self, got: "_Masked", group: Group, about: dict[str, Any]) -> None:
        keys = {
            n: v["keys"] for n, v in self._ask(got, about | {"phase": "keys"}, list(group.names)).items() if "keys" in v
        }
        read = read_keys(group, keys)
        public = {f"keys.{n}": data for n, data in keys.items()}
        shares = self._ask(got, about | {"phase": "shares"}, sorted(read), dict.fromkeys(read, public))
        inbox: Bytes = {n: {} for n in shares}
        for sender, pieces in shares.items():
            for name, data in pieces.items():
                if (peer := name.removeprefix("share.")) in inbox:
                    inbox[peer][f"share.{sender}"] = data
        self._train(got, group, about, inbox)
        survivors = got.total.participants if got.total else []
        if len(survivors) < self.least:
            return
        lost = sorted(set(inbox) - set(survivors))
        self._unmask(got, group, about | {"survivors": survivors}, survivors, lost, read)

    def _train(self, got: "_Masked", group: Group, about: dict[str, Any], inbox: Bytes) -> None:
        """The third exchange: sites train, and send masked updates."""
        x, state = self.now.x, shared(self.now.state)
        vectors = shared({"model": x, **self.fed.strategy.broadcast(x[self.now.spec.trainable], state)})
        got.total = MaskedSum(group, self.roster.verifiers)
        grid = {"bounds": list(self._grid.bounds), "sizes": list(self._grid.sizes)}
        tasks = {
            name: self._task(got, name, about | {"phase": "mask", "grid": grid}, dict(vectors) | _arrays(inbox[name]))
            for name in sorted(inbox)
        }
        got.down += sum(nbytes(task.vectors) for task in tasks.values())
        gate = SealedGate(self.now.run, got.number, frozenset(tasks), {}, 1.0)
        for reply in self.backend.exchange(tasks, self.fed.deadline):
            checked = got.take(self, admit(self, gate, reply))
            got.failed += isinstance(checked, Failure)
            self.tell(Event("fit", got.number, reply.client, checked))

    def _unmask(
        self, got: "_Masked", group: Group, about: dict[str, Any], survivors: list[str], lost: list[str], keys: Any
    ) -> None:
        """The last two exchanges."""
        signed = self._ask(got, about | {"phase": "confirm"}, survivors)
        signatures = {n: v["signature"].hex() for n, v in signed.items() if "signature" in v}
        answers = self._ask(got, about | {"phase": "reveal", "signatures": signatures}, sorted(signatures))
        reveals = []
        for name, pieces in answers.items():
            try:
                reveals.append(Reveal.from_json(strict_json(pieces.get("reveal", b""))))
            except (MessageError, FrameRefused) as error:
                record(self, Failure(name, got.number, "share", str(error)))
        assert got.total is not None
        slots = Unmasking.join(group, keys, reveals, survivors, lost).remove(got.total.total)
        decoded = self.plan.codec(self._grid).decode(slots, expect=len(survivors))
        got.mean = self.plan.pipeline.backward(decoded.mean, self._at(got.number, len(survivors)), self.plan.length)
        got.flags = decoded.flags

    def _ask(
        self, got: "_Masked", about: dict[str, Any], names: list[str], vectors: Mapping[str, Any] | None = None
    ) -> Bytes:
        """One short exchange; who does not answer is out."""
        tasks = {n: self._task(got, n, about, _arrays(vectors[n]) if vectors else {}) for n in names}
        got.down += sum(nbytes(task.vectors) for task in tasks.values())
        gate = SealedGate(self.now.run, got.number, frozenset(tasks), {}, 1.0)
        found: Bytes = {}
        for reply in self.backend.exchange(tasks, self.fed.deadline):
            checked = admit(self, gate, reply)
            if isinstance(checked, Update):
                found[checked.client] = {name: v.tobytes() for name, v in checked.vectors.items()}
                got.up += nbytes(checked.vectors)
            else:
                got.failed += 1
        return dict(sorted(found.items()))

    def _task(self, got: "_Masked", name: str, about: dict[str, Any], vectors: Mapping[str, Any]) -> Task:
        limit = 8 * self.plan.codec().size + (1 << 20)
        config = config_for(self, got.number, name, limit) | {"stages": self._about(**about)}
        return Task(got.number, "fit" if about["phase"] == "mask" else "step", vectors, config)

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
        following = self._grid.following(got.flags)
        self.now.privacy = self.now.privacy | {"grid": {"bounds": following.bounds, "sizes": following.sizes}}
        return self._split(got.mean)


class _Masked(Collected):
    """One attempt."""

    total: MaskedSum | None = None
    mean: Vector | None = None
    flags: tuple[int, ...] = ()

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
        self.up += nbytes(reply.vectors)
        return reply


def _arrays(pieces: Mapping[str, bytes]) -> dict[str, Any]:
    return {name: np.frombuffer(data, np.uint8) for name, data in pieces.items()}
