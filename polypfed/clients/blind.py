"""A site under encryption: it holds the model, decrypts the sum of each round and runs the strategy's step itself.

task     the sums of the rounds this site has not seen, never a model
site     decrypt -> mean -> step -> x ;  train from x ;  quantise, encrypt and sign the update
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from polypfed.clients.base import Client
from polypfed.clients.following import Follower, Position
from polypfed.clients.masking import Steps, group_of
from polypfed.clients.outbox import at_site
from polypfed.core.messages import Evaluation, Task, Update
from polypfed.core.rundir import save_model
from polypfed.privacy.errors import KeyRefused
from polypfed.privacy.group import read_keys
from polypfed.privacy.he import open_sum, seal_update
from polypfed.privacy.keyring import open_keys, rosters
from polypfed.privacy.keys import JobKey, open_state, seal_state, unwrap, wrap
from polypfed.privacy.plan import as_vectors, from_vectors
from polypfed.privacy.roster import Roster
from polypfed.privacy.seal import KeyHolder
from polypfed.privacy.secagg import Unmasking
from polypfed.privacy.slots import Integers
from polypfed.privacy.stage import Encrypt, Mask, Stage
from polypfed.strategies.base import Strategy

DIGEST = "model_digest"  # the metric by which the server sees that all sites hold the same model


class BlindClient(Follower):
    """The client half of a blind federation, around any client.

    Args:
        client: what trains; it must have `initial`, for no model comes from the server.
        strategy: run here, by the same pure `step` at every site.
        stages: as the task describes them; one of them is Encrypt.
        keys: the folder of this site's identity and roster.
        model: the file that holds the model, for no server has it.

    Raises:
        ConfigError: the client has no `initial`. KeyRefused: a key file cannot be used.
    """

    def __init__(self, client: Client, strategy: Strategy, stages: tuple[Stage, ...], keys: Path, model: Path) -> None:
        self.identity, self.roster = open_keys(keys)
        super().__init__(client, strategy, stages, len(self.roster.names))
        self._file, self._rosters = model, rosters(keys)
        self._encrypt = self.plan.pipeline.find(Encrypt) or Encrypt()
        self._steps = Steps(self.plan, self.identity, self.roster)
        self._masked = self.plan.pipeline.find(Mask) is not None
        self._job: dict[tuple[str, int], tuple[JobKey, KeyHolder, Roster]] = {}

    def fit(self, task: Task) -> Update:
        """Take in the sums, train, and send the update encrypted; or, asked for a key, make one."""
        if task.kind == "step":
            return self._make_key(task) if task.config["stages"]["phase"] == "key" else self._steps.take(task)
        self._take_in(task)
        update = self._inner.fit(replace(task, vectors=self._vectors()))
        sealed = {} if not update.weight else self._sealed(task, update)
        return Update(self.name, task.round, sealed | self._snapshot(task), int(bool(update.weight)), update.metrics)

    def _sealed(self, task: Task, update: Update) -> dict[str, Any]:
        at = at_site(task, self.name, self.at.reference)
        vector, _ = self.outbox.flat(update, at)
        encoded = self.outbox.slots(self.plan.codec(self.at.grid), vector, update.weight, at)
        slots = self._steps.mask(task, encoded.slots) if self._masked else encoded.slots
        key, holder, _ = self._key(task, int(task.config["stages"]["epoch"]))
        label = self.plan.label(task.run, task.round, int(task.config["stages"]["attempt"]), key.id)
        number = self.roster.number(self.name)
        frames = seal_update(holder, slots, label, number, self.identity.signer)
        return as_vectors("frame", list(frames))

    def evaluate(self, task: Task) -> Evaluation:
        """Take in the sums, score the model; and say which one it is."""
        self._take_in(task)
        result = self._inner.evaluate(replace(task, vectors={"model": self.at.x}))
        save_model(self._file, self.spec, self.at.x)
        return replace(result, metrics={**result.metrics, DIGEST: self._digest()})

    def _digest(self) -> int:
        held = hashlib.sha256(self.at.x.tobytes())
        for name in sorted(self.at.state):
            held.update(np.asarray(self.at.state[name]).tobytes())
        return int.from_bytes(held.digest()[:6], "little")

    def _take_in(self, task: Task) -> None:
        """As ever, from a snapshot on if one came."""
        self._adopt_snapshot(task)
        super()._take_in(task)

    def _sum(self, task: Task, number: int, about: Mapping[str, Any]) -> Integers:
        """Decrypted, if it is of those whom the server names, and without masks."""
        key, holder, roster = self._key(task, int(about["epoch"]))
        label = self.plan.label(task.run, number, int(about["attempt"]), key.id)
        frames, server = from_vectors(f"sum.{number}", task.vectors), roster.server.verifier
        total = open_sum(holder, frames, label, server, self._encrypt.minimum)
        if sorted(roster.number(name) for name in about["clients"]) != sorted(total.participants):
            raise KeyRefused("the sum is of other sites than the server names", where=self.name)
        return self._opened(task, number, about, total.slots, roster)

    def _opened(self, task: Task, number: int, about: Mapping[str, Any], slots: Integers, roster: Roster) -> Integers:
        """The sum of the slots, its masks removed by what the survivors have revealed."""
        if not self._masked:
            return slots
        given = about["unmasking"]
        group = group_of(task.run, number, int(about["attempt"]), roster, tuple(given["group"]), self.plan)
        keys = read_keys(group, {name: bytes.fromhex(data) for name, data in given["keys"].items()})
        return Unmasking.from_json(group, keys, given).remove(slots)

    def _key(self, task: Task, epoch: int) -> tuple[JobKey, KeyHolder, Roster]:
        if (task.run, epoch) not in self._job:
            piece = task.vectors.get(f"key.{epoch}")
            if piece is None:
                raise KeyRefused(f"the key of epoch {epoch} did not come", where=self.name)
            key, roster = self._unwrapped(piece.tobytes(), task.run, epoch)
            self._job[task.run, epoch] = key, KeyHolder(key.params, key.secret), roster
        return self._job[task.run, epoch]

    def _unwrapped(self, piece: bytes, run: str, epoch: int) -> tuple[JobKey, Roster]:
        """A key, and the roster it was made under: the present one, or for what was sent before a change an earlier."""
        refused: list[KeyRefused] = []
        for roster in self._rosters:
            try:
                return unwrap(piece, self.identity, roster, run, after=epoch - 1), roster
            except KeyRefused as refusal:
                refused.append(refusal)
        raise refused[0]

    def _make_key(self, task: Task) -> Update:
        """This site has been elected: a new key for all members, each piece readable by one of them only."""
        epoch = int(task.config["stages"]["epoch"])
        key = JobKey.create(task.run, self.plan.params, self.roster, epoch)
        pieces: dict[str, Any] = {
            f"key.{n}": np.frombuffer(p, np.uint8) for n, p in wrap(key, self.roster, self.identity).items()
        }
        pieces["id"] = np.frombuffer(key.id, np.uint8)
        return Update(self.name, task.round, pieces, 1, {})

    def _snapshot(self, task: Task) -> dict[str, Any]:
        """The model and all that goes with it, sealed under the job key, if the server asks for it."""
        if not task.config["stages"].get("snapshot"):
            return {}
        key, _, _ = self._key(task, int(task.config["stages"]["epoch"]))
        return {"snapshot": np.frombuffer(seal_state(key, self.at.round, self.at.pack()), np.uint8)}

    def _adopt_snapshot(self, task: Task) -> None:
        about = task.config["stages"].get("sealed")
        if about and int(about["round"]) > self.at.round:
            key, _, _ = self._key(task, int(about["epoch"]))
            sealed = open_state(key, int(about["round"]), task.vectors["sealed"].tobytes())
            self.at, _ = Position.unpack(sealed)
