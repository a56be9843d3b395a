"""The round engine where rounded updates travel in clear: their integers are added, and the sum goes back.

task     the sums between what a site holds and the global model; the whole only to one that is somewhere else
site     sum -> mean -> the strategy's step -> x ;  train from x ;  round, entropy-code
server   check each update, add it ;  sum -> mean -> the same step -> x

Both ends come to the same bits, which the SHA-256 in every task shows. As few levels as three or five take two bits a
value up and three down instead of 32 each: signSGD with majority vote (Bernstein et al. 2018) and QSGD (Alistarh et al.
2017) are relatives, but here what comes back is the exact sum.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from polypfed.clients.following import Position
from polypfed.core.audit import sha256
from polypfed.core.errors import LayoutError, Refused
from polypfed.core.gate import SealedGate, default_max_norm, norm_of
from polypfed.core.messages import Evaluation, Failure, Reply, Task, Update
from polypfed.core.model import Vector, nbytes
from polypfed.core.signing import base_of
from polypfed.federation.collect import Collected, admit, config_for, record
from polypfed.federation.masking import as_arrays
from polypfed.federation.protocol import Event
from polypfed.federation.staged import StagedEngine
from polypfed.federation.sums import SumLog
from polypfed.privacy.deflate import deflate, inflate, longest
from polypfed.privacy.quantise import Codec
from polypfed.strategies.base import Cohort, keeps_nothing

_ELSEWHERE = "elsewhere"  # sites that are not where their accepted round says: the next task brings the whole


class PackedEngine(StagedEngine):
    """One run of rounded updates in clear."""

    _log: SumLog

    def _place(self) -> Path | None:
        root = super()._place()
        folder = root or Path(tempfile.mkdtemp(prefix="polypfed-"))
        if root is None:
            self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        self._log = SumLog(folder / "sums")
        return root

    def begin(self) -> None:
        """As ever; sums of a beginning that was killed go."""
        self._log.drop_after(0)
        super().begin()

    def restore(self) -> None:
        """Back to the last checkpoint; sums it does not know are dropped."""
        super().restore()
        self._log.drop_after(self.now.round)

    def _elsewhere(self) -> set[str]:
        """Sites to which sums say nothing; before the first task, those that begin with another model are found."""
        if _ELSEWHERE not in self.now.privacy:
            self._mark(self._strangers())
        return set(self.now.privacy[_ELSEWHERE])

    def _mark(self, names: set[str]) -> None:
        self.now.privacy = self.now.privacy | {_ELSEWHERE: sorted(names)}

    def _strangers(self) -> set[str]:
        """All sites but those that say they begin with the initial model."""
        about = {"stages": self._about(phase="begin")}
        config = {n: config_for(self, self.now.round, n, 1 << 10) | about for n in self.sites}
        tasks = {n: Task(self.now.round, "step", {}, config[n]) for n in self.sites}
        gate, begins = SealedGate(self.now.run, self.now.round, frozenset(tasks), {}, 1.0), sha256(self.now.x.data)
        found = set(self.sites)
        for reply in self.backend.exchange(tasks, self.fed.deadline):
            said = admit(self, gate, reply)
            if isinstance(said, Update) and "id" in said.vectors and said.vectors["id"].tobytes().hex() == begins:
                found.discard(said.client)
        return found

    def _tasks(
        self, kind: Literal["fit", "evaluate"], names: Sequence[str], number: int, **more: Any
    ) -> dict[str, Task]:
        """Tasks on the present model. What two sites get alike is in memory once."""
        now, codec, elsewhere, known = self.now, self.plan.codec(), self._elsewhere(), set(self._log.rounds)
        base, whole, found = sha256(now.x.data), dict[str, Any](), dict[str, Task]()
        for name in names:
            sums = range(max(now.accepted.get(name, 0), 1), now.round + 1)
            follows = name not in elsewhere and known.issuperset(sums)
            entries = {n: self._log.get(n) for n in sums} if follows else {}
            vectors = as_arrays({f"sum.{n}": entry.pieces[0] for n, entry in entries.items() if entry.pieces})
            if not follows:
                vectors = whole = whole or as_arrays({"whole": self._whole()})
            about = self._about(base=now.round, sums={str(n): entry.about for n, entry in entries.items()})
            config = config_for(self, number, name, longest(codec.size, codec.slots) + (1 << 20))
            found[name] = Task(number, kind, vectors, config | {"stages": about, "base": base, **more})
        return found

    def _whole(self) -> bytes:
        state = dict(self.now.state)
        reference = state.pop("stages.reference", None)
        return Position(self.now.round, self.now.x, state, self._grid, reference).pack()

    def _collect(self, number: int, attempt: int) -> Collected:
        names = self._cohort(number, attempt)
        got, tasks = _Packed(self, number, names), self._tasks("fit", names, number, cohort=len(names))
        got.down += sum(nbytes(task.vectors) for task in tasks.values())
        gate = SealedGate(self.now.run, number, frozenset(tasks), {}, 1.0, base=base_of(tasks[names[0]]))
        for reply in self.backend.exchange(tasks, self.fed.deadline):
            checked = got.take(self, admit(self, gate, reply))
            got.failed += isinstance(checked, Failure)
            self._locate(checked)
            self.tell(Event("fit", number, reply.client, checked))
        return got

    def _locate(self, reply: Update | Failure | Evaluation) -> None:
        """A site that has lost its state, or has come to another model, gets the whole next time."""
        if isinstance(reply, Failure) and reply.reason == "state" and reply.client in self.sites:
            self._mark(self._elsewhere() | {reply.client})
            if keeps_nothing(self.fed.strategy):
                self.now.accepted = {n: r for n, r in self.now.accepted.items() if n != reply.client}

    def _mean(self, got: Collected) -> dict[str, Vector]:
        assert isinstance(got, _Packed)
        if not got.working:
            return self.plan.split(np.zeros(self.plan.length, np.float32))
        decoded = got.codec.decode(got.total, expect=got.working)
        mean = self.plan.pipeline.backward(decoded.mean, self._at(got.number, got.working), self.plan.length)
        self.now.privacy = self.now.privacy | {"grid": got.codec.grid.following(decoded.spans).to_json()}
        return self._split(mean)

    def _counted(self, number: int, working: Mapping[str, int]) -> Cohort:
        """As the sites are told: nothing of each other's examples."""
        return super()._counted(number, dict.fromkeys(working, 1))

    def _step(self, number: int, got: Collected) -> None:
        """The step at the server, and the sum by which the sites follow; old sums go once the whole is shorter."""
        assert isinstance(got, _Packed)
        super()._step(number, got)
        working = sorted(name for name, weight in got.accepted.items() if weight)
        self._mark(self._elsewhere() - set(working))
        pieces = [deflate(got.total, got.codec.slots, len(working))] if working else []
        self._log.add(number, {"clients": working}, pieces)
        self._log.keep(self.now.x.nbytes)

    def _evaluation_tasks(self, local_models: Mapping[str, Vector]) -> dict[str, Task]:
        return self._tasks("evaluate", self.sites, self.now.round)

    def _score(self, reply: Reply, scores: dict[str, Evaluation]) -> Reply:
        taken = super()._score(reply, scores)
        self._locate(taken)
        return taken


class _Packed(Collected):
    """One round's integers. An update counts whole or not at all, in whatever order they come."""

    def __init__(self, engine: PackedEngine, number: int, names: list[str]) -> None:
        super().__init__(engine, number, names)
        self.codec: Codec = engine.plan.codec(engine._grid)
        self.total = np.zeros(self.codec.size, np.uint32)
        self._largest = engine.fed.max_norm or default_max_norm(engine.now.x)

    def _lengths(self, engine: Any) -> dict[str, int]:
        return {}

    def take(self, engine: PackedEngine, reply: Update | Failure) -> Update | Failure:
        """Add the update, if it is one of this round's grid; one that is refused is recorded as a failure."""
        if isinstance(reply, Failure):
            return reply
        try:
            if reply.weight:
                self.total += self._opened(reply)
        except Refused as refusal:
            return record(engine, Failure(reply.client, self.number, refusal.reason, str(refusal)))
        self.accepted[reply.client], self.rounds[reply.client] = reply.weight, reply.round
        self.metrics[reply.client] = {**reply.metrics, "weight": reply.weight}
        self.up += nbytes(reply.vectors)
        return reply

    def _opened(self, update: Update) -> np.ndarray[Any, np.dtype[np.uint32]]:
        who = update.client
        if "levels" not in update.vectors:
            raise Refused("keys", "sends no levels", where=who)
        slots = inflate(update.vectors["levels"].tobytes(), self.codec.size, self.codec.slots)
        try:
            decoded = self.codec.decode(slots, expect=1)
        except LayoutError as error:
            raise Refused("body", error.problem, where=who) from None
        if self.codec.cap is not None and decoded.weight != update.weight:
            raise Refused("weight", f"is of {decoded.weight} examples and says {update.weight}", where=who)
        if not (norm := norm_of(decoded.mean)) <= self._largest:
            raise Refused("norm", f"has norm {norm:.3g}, more than {self._largest:.3g}", where=who)
        return slots
