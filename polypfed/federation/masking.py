"""The exchanges around masked updates: what the server relays before, and what opens the sum after."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from polypfed.core.errors import MessageError, Refused
from polypfed.core.gate import SealedGate
from polypfed.core.messages import Failure, Task, Update, strict_json
from polypfed.core.model import nbytes
from polypfed.federation.collect import Collected, admit, config_for, record
from polypfed.privacy.errors import FrameRefused
from polypfed.privacy.group import Group, RoundKeys, read_keys
from polypfed.privacy.plan import from_vectors
from polypfed.privacy.secagg import Reveal, Unmasking

if TYPE_CHECKING:
    from polypfed.federation.staged import StagedEngine

Bytes = dict[str, dict[str, bytes]]


class Masking:
    """One attempt at a masked round.

    Attributes:
        about: what every task of the attempt says.
        keys: by site, once they have been advertised.
        inbox: by site, the shares that its peers sealed for it; who is in here may train.
    """

    def __init__(self, engine: "StagedEngine", got: Collected, group: Group) -> None:
        self._engine, self._got, self.group = engine, got, group
        self.about = {"attempt": group.attempt, "group": list(group.names)}
        self.keys: dict[str, RoundKeys] = {}
        self.public: dict[str, bytes] = {}
        self.inbox: Bytes = {}

    def prepare(self) -> None:
        """Keys, then shares.

        Raises:
            Refused: too few sites take part.
        """
        names = list(self.group.names)
        advertised = self._ask("keys", names)
        self.public = {name: pieces["keys"] for name, pieces in advertised.items() if "keys" in pieces}
        self.keys = read_keys(self.group, self.public)
        relayed = {f"keys.{name}": data for name, data in self.public.items()}
        shares = self._ask("shares", sorted(self.keys), vectors=relayed)
        self.inbox = {name: {} for name in shares}
        for sender, pieces in shares.items():
            for name, data in pieces.items():
                if (peer := name.removeprefix("share.")) in self.inbox:
                    self.inbox[peer][f"share.{sender}"] = data

    def finish(self, survivors: list[str]) -> Unmasking:
        """The survivors sign who they are, and reveal what opens their sum.

        Raises:
            Refused: too few of them answer.
        """
        lost = sorted(set(self.inbox) - set(survivors))
        signed = self._ask("confirm", survivors, survivors=survivors)
        signatures = {n: v["signature"].hex() for n, v in signed.items() if "signature" in v}
        reveals = []
        for name, pieces in self._ask("reveal", sorted(signatures), signatures=signatures).items():
            try:
                reveals.append(Reveal.from_json(strict_json(pieces.get("reveal", b""))))
            except (MessageError, FrameRefused) as error:
                record(self._engine, Failure(name, self._got.number, "share", str(error)))
        return Unmasking.join(self.group, self.keys, reveals, survivors, lost)

    def _ask(self, phase: str, names: list[str], vectors: Mapping[str, bytes] | None = None, **more: Any) -> Bytes:
        """One short exchange; who does not answer is out."""
        engine, number = self._engine, self._got.number
        about = engine._about(**self.about, phase=phase, **more)
        config = {n: config_for(engine, number, n, 1 << 22) | {"stages": about} for n in names}
        tasks = {n: Task(number, "step", as_arrays(vectors or {}), config[n]) for n in names}
        self._got.down += sum(nbytes(task.vectors) for task in tasks.values())
        gate = SealedGate(engine.now.run, number, frozenset(tasks), {}, 1.0)
        found: Bytes = {}
        for reply in engine.backend.exchange(tasks, engine.fed.deadline):
            checked = admit(engine, gate, reply)
            if isinstance(checked, Update):
                found[checked.client] = {name: v.tobytes() for name, v in checked.vectors.items()}
                self._got.up += nbytes(checked.vectors)
            else:
                self._got.failed += 1
        return dict(sorted(found.items()))


class Frames(Protocol):
    """A sum that takes updates frame by frame: all of a site's, or none."""

    def add(self, data: bytes) -> int | None: ...
    def drop(self, site: int) -> None: ...


class Summed(Collected):
    """One attempt at a round whose updates are frames of a sum."""

    total: Frames

    def _lengths(self, engine: Any) -> dict[str, int]:
        return {}

    def take(self, engine: "StagedEngine", reply: Update | Failure) -> Update | Failure:
        """Add all frames of one site, or none; an update that is refused is recorded as a failure."""
        if isinstance(reply, Failure):
            return reply
        number, complete = engine.roster.number(reply.client), None
        try:
            for frame in from_vectors("frame", reply.vectors):
                complete = self.total.add(frame)
            if reply.weight and complete != number:
                raise FrameRefused("incomplete", "frames are missing, or are another site's", where=reply.client)
        except Refused as refusal:
            self.total.drop(number)
            return record(engine, Failure(reply.client, self.number, refusal.reason, str(refusal)))
        self.accepted[reply.client], self.rounds[reply.client] = reply.weight, reply.round
        self.metrics[reply.client] = dict(reply.metrics)
        self.up += nbytes(reply.vectors)
        return reply


def give_up(engine: "StagedEngine", got: Collected, refusal: Refused) -> None:
    """The attempt cannot be completed: nothing of it counts."""
    record(engine, Failure(str(refusal.where or ""), got.number, refusal.reason, str(refusal)))
    got.accepted.clear()


def as_arrays(pieces: Mapping[str, bytes]) -> dict[str, Any]:
    """Bytes as uint8 arrays."""
    return {name: np.frombuffer(data, np.uint8) for name, data in pieces.items()}
