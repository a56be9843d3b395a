"""A site under encryption: it holds the model, decrypts the sum of each round and runs the strategy's step itself.

task     the sums of the rounds this site has not seen, never a model
site     decrypt -> mean -> step -> x ;  train from x ;  quantise, encrypt and sign the update
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from polypfed.clients.base import Client
from polypfed.clients.masking import Steps, group_of
from polypfed.clients.outbox import Outbox, at_site, initial_of, plan_of
from polypfed.core.errors import LayoutError, StateError
from polypfed.core.gate import norm_of
from polypfed.core.messages import Evaluation, Task, Update
from polypfed.core.model import Vector, fixed, shared
from polypfed.core.pack import pack_state, unpack_inner, unpack_state
from polypfed.core.reduce import BUFFERS
from polypfed.core.rundir import save_model
from polypfed.privacy.errors import KeyRefused
from polypfed.privacy.group import read_keys
from polypfed.privacy.he import open_sum, seal_update
from polypfed.privacy.keyring import open_keys, rosters
from polypfed.privacy.keys import JobKey, open_state, seal_state, unwrap, wrap
from polypfed.privacy.plan import as_vectors, from_vectors
from polypfed.privacy.quantise import Grid
from polypfed.privacy.roster import Roster
from polypfed.privacy.seal import KeyHolder
from polypfed.privacy.secagg import Unmasking
from polypfed.privacy.slots import Integers
from polypfed.privacy.stage import At, Encrypt, Mask, Stage
from polypfed.strategies.base import Cohort, Strategy

DIGEST = "model_digest"  # the metric by which the server sees that all sites hold the same model
_PACKED = "packed"


class BlindClient:
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
        self.client, self.name, self._file = client, client.name, model
        self._inner, self._strategy = strategy.at_site(client), strategy
        self.identity, self.roster = open_keys(keys)
        self._rosters = rosters(keys)
        layout, x = initial_of(client)
        self._spec = strategy.wire(layout)
        self._first = x if self._spec is layout else x[layout.places({p.name for p in self._spec.parts})]
        self.plan = plan_of(strategy, layout, stages, len(self.roster.names))
        self._encrypt = self.plan.pipeline.find(Encrypt) or Encrypt()
        self.outbox = Outbox(self.plan, strategy, client.name)
        self._steps = Steps(self.plan, self.identity, self.roster)
        self._masked = self.plan.pipeline.find(Mask) is not None
        self._job: dict[tuple[str, int], tuple[JobKey, KeyHolder, Roster]] = {}
        self._begin()

    def _begin(self) -> None:
        self._x: Vector = fixed(self._first.copy())
        self._state: Mapping[str, Any] = self._strategy.init(self._x[self._spec.trainable])
        self._grid = self.plan.first_grid(self._x)
        self._round = 0
        self._reference: Vector | None = None
        self.outbox.kept = {}

    def fit(self, task: Task) -> Update:
        """Take in the sums, train, and send the update encrypted; or, asked for a key, make one."""
        if task.kind == "step":
            return self._make_key(task) if task.config["stages"]["phase"] == "key" else self._steps.take(task)
        self._take_in(task)
        x = self._x
        vectors = shared({"model": x, **self._strategy.broadcast(x[self._spec.trainable], self._state)})
        update = self._inner.fit(replace(task, vectors=vectors))
        sealed = {} if not update.weight else self._sealed(task, update)
        return Update(self.name, task.round, sealed | self._snapshot(task), int(bool(update.weight)), update.metrics)

    def _sealed(self, task: Task, update: Update) -> dict[str, Any]:
        at = at_site(task, self.name, self._reference)
        vector, _ = self.outbox.flat(update, at)
        encoded = self.outbox.slots(self.plan.codec(self._grid), vector, update.weight, at)
        slots = self._steps.mask(task, encoded.slots) if self._masked else encoded.slots
        key, holder, _ = self._key(task, int(task.config["stages"]["epoch"]))
        label = self.plan.label(task.run, task.round, int(task.config["stages"]["attempt"]), key.id)
        number = self.roster.number(self.name)
        frames = seal_update(holder, slots, label, number, self.identity.signer)
        return as_vectors("frame", list(frames))

    def evaluate(self, task: Task) -> Evaluation:
        """Take in the sums, score the model; and say which one it is."""
        self._take_in(task)
        result = self._inner.evaluate(replace(task, vectors={"model": self._x}))
        save_model(self._file, self._spec, self._x)
        return replace(result, metrics={**result.metrics, DIGEST: self._digest()})

    def _digest(self) -> int:
        held = hashlib.sha256(self._x.tobytes())
        for name in sorted(self._state):
            held.update(np.asarray(self._state[name]).tobytes())
        return int.from_bytes(held.digest()[:6], "little")

    def _take_in(self, task: Task) -> None:
        """Run the step of every round between this site's model and the one that is asked for."""
        about = task.config["stages"]
        self._adopt_snapshot(task)
        for number in sorted(int(n) for n in about["sums"]):
            if number == self._round + 1:
                self._step(task, number, about["sums"][str(number)])
        wanted = int(about["base"])
        if self._round != wanted:
            raise StateError(
                f"holds the model of round {self._round}, round {wanted} is asked for", where=self.name,
                remedy="The server sends the rounds between, or a snapshot; ask the site that keeps them",
            )  # fmt: skip

    def _step(self, task: Task, number: int, about: Mapping[str, Any]) -> None:
        names = tuple(about["clients"])
        if names:
            key, holder, roster = self._key(task, int(about["epoch"]))
            label = self.plan.label(task.run, number, int(about["attempt"]), key.id)
            frames = from_vectors(f"sum.{number}", task.vectors)
            server = roster.server.verifier
            total = open_sum(holder, frames, label, server, self._encrypt.minimum)
            if sorted(roster.number(name) for name in names) != sorted(total.participants):
                raise KeyRefused("the sum is of other sites than the server names", where=self.name)
            codec = self.plan.codec(self._grid)
            decoded = codec.decode(self._opened(task, number, about, total.slots, roster), expect=len(names))
            at = At(int(task.config["stages"]["seed"]), number, reference=self._reference)
            mean = self.plan.pipeline.backward(decoded.mean, at, self.plan.length)
            self._move(number, mean, names)
            self._reference = mean
            self._grid = self._grid.following(decoded.spans)
        self._round = number

    def _opened(self, task: Task, number: int, about: Mapping[str, Any], slots: Integers, roster: Roster) -> Integers:
        """The sum of the slots, its masks removed by what the survivors have revealed."""
        if not self._masked:
            return slots
        given = about["unmasking"]
        group = group_of(task.run, number, int(about["attempt"]), roster, tuple(given["group"]), self.plan)
        keys = read_keys(group, {name: bytes.fromhex(data) for name, data in given["keys"].items()})
        return Unmasking.from_json(group, keys, given).remove(slots)

    def _move(self, number: int, mean: Vector, names: tuple[str, ...]) -> None:
        parts = self.plan.split(mean)
        buffers = self._spec.moved_buffers(self._x, parts.pop(BUFFERS))
        cohort = Cohort(number, names, (1,) * len(names), len(self.roster.names))
        moved, state = self._strategy.step(self._x[self._spec.trainable], shared(self._state), parts, cohort)
        x = np.concatenate([moved, buffers])
        if x.shape != self._x.shape or np.isnan(norm_of(x)):
            raise LayoutError("the new model is not finite", where="strategy", remedy="Lower its learning rate")
        self._x, self._state = fixed(x), state

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
        return {"snapshot": np.frombuffer(seal_state(key, self._round, self._packed(residual=False)), np.uint8)}

    def _adopt_snapshot(self, task: Task) -> None:
        about = task.config["stages"].get("sealed")
        if about and int(about["round"]) > self._round:
            key, _, _ = self._key(task, int(about["epoch"]))
            sealed = open_state(key, int(about["round"]), task.vectors["sealed"].tobytes())
            self._unpack(sealed, residual=False)

    def _packed(self, *, residual: bool) -> bytes:
        numbers = {k: v for k, v in self._state.items() if not isinstance(v, np.ndarray)}
        about = {"round": self._round, "grid": self._grid.to_json(), "numbers": numbers}
        vectors = {f"state.{k}": v for k, v in self._state.items() if isinstance(v, np.ndarray)}
        vectors |= {"x": self._x} | ({} if self._reference is None else {"reference": self._reference})
        vectors |= {f"kept.{k}": v for k, v in self.outbox.kept.items()} if residual else {}
        return pack_state(vectors, json.dumps(about).encode())

    def _unpack(self, data: bytes, *, residual: bool) -> None:
        vectors, about = unpack_state(data), json.loads(unpack_inner(data))
        self._x, self._round = fixed(vectors["x"]), int(about["round"])
        self._grid, self._reference = Grid.from_json(about["grid"]), vectors.get("reference")
        self._state = {k[6:]: v for k, v in vectors.items() if k.startswith("state.")} | about["numbers"]
        if residual:
            self.outbox.kept = {k[5:]: v for k, v in vectors.items() if k.startswith("kept.")}

    def state(self) -> bytes:
        """The model, the strategy's state, what the stages keep, and the inner client's state."""
        return pack_state({_PACKED: np.frombuffer(self._packed(residual=True), np.uint8)}, self._inner.state())

    def restore(self, state: bytes) -> None:
        """The inverse of `state`."""
        if state:
            self._unpack(unpack_state(state)[_PACKED].tobytes(), residual=True)
        else:
            self._begin()
        self._inner.restore(unpack_inner(state))
