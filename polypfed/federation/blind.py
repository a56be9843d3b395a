"""The round engine under encryption: the server sums, relays and keeps ciphertext, and never holds a model.

Each site decrypts the same sum and runs the same pure step, so all reach the same model; see `clients.blind`. What the
server keeps is a log of encrypted sums, and now and then a snapshot that a site has sealed for the others.
"""

import hashlib
import secrets
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polypfed.clients.base import agreed
from polypfed.clients.blind import DIGEST
from polypfed.clients.masking import group_of
from polypfed.core.checkpoint import Checkpoint
from polypfed.core.errors import QuorumError, Refused
from polypfed.core.gate import SealedGate
from polypfed.core.messages import Evaluation, Failure, Task, Update
from polypfed.core.model import nbytes
from polypfed.core.rundir import machine
from polypfed.federation.collect import Collected, admit, config_for, record
from polypfed.federation.masking import Masking, Summed, as_arrays, give_up
from polypfed.federation.protocol import Backend, Event, Listener
from polypfed.federation.staged import StagedEngine
from polypfed.federation.sums import SumLog
from polypfed.privacy.he import Accumulator
from polypfed.privacy.plan import as_vectors
from polypfed.privacy.stage import Encrypt, Mask
from polypfed.strategies.base import keeps_nothing

if TYPE_CHECKING:
    from polypfed.federation.api import Federation

_NOTHING = np.zeros(0, np.float32)


class BlindEngine(StagedEngine):
    """One run under encryption."""

    def __init__(self, fed: "Federation", backend: Backend, directory: Path | None, listen: Listener | None) -> None:
        super().__init__(fed, backend, directory, listen)
        self._attempt = self._epoch = 0
        self._log: SumLog

    @property
    def _encrypt(self) -> Encrypt:
        return next(stage for stage in self.fed.stages if isinstance(stage, Encrypt))

    def _place(self) -> Path | None:
        root = super()._place()
        assert root is not None
        self._log = SumLog(root / "sums")
        return root

    @property
    def least(self) -> int:
        """A sum of fewer is not decrypted."""
        return max(self._encrypt.minimum, super().least)

    def begin(self) -> None:
        """Round 0: every site scores the initial model, which it has itself; the server knows its layout only."""
        layout = self.fed.initial[0] if self.fed.initial else agreed(self.fed.clients)[0]
        self._check(layout)
        run = secrets.token_hex(8)
        self.now = Checkpoint(run, self._settings(layout.digest), 0, self.fed.strategy.wire(layout), _NOTHING, {})
        if self.folder:
            self.folder.begin({"run": run, "settings": self.now.settings, "machine": machine()})
            shutil.rmtree(self.folder.path / "sums", ignore_errors=True)
        self.witness.open("begin")
        self._evaluate({})
        self._commit()

    def restore(self) -> None:
        """Back to the last checkpoint; sums it does not know are dropped."""
        super().restore()
        self._log.drop_after(self.now.round)

    def _elect(self, number: int) -> None:
        """See that there is a job key for the present members; else a site makes one, wrapped for each."""
        keys, members = self._log.keys(), self.roster.digest.hex()
        if keys and keys[max(keys)].about["roster"] == members:
            self._epoch = max(keys)
            return
        self._epoch = max(keys, default=0) + 1
        order = sorted(self.sites, key=lambda n: hashlib.sha256(f"{self.now.run} {n}".encode()).digest())
        for name in order:
            config = config_for(self, number, name, 1 << 20)
            config |= {"stages": self._about(phase="key", epoch=self._epoch)}
            for reply in self.backend.exchange({name: Task(number, "step", {}, config)}, self.fed.deadline):
                gate = SealedGate(self.now.run, number, frozenset([name]), {}, 1.0)
                update = admit(self, gate, reply)
                if isinstance(update, Update) and {f"key.{n}" for n in self.sites} <= set(update.vectors):
                    pieces = {n: update.vectors[f"key.{n}"].tobytes() for n in self.sites}
                    about = {"id": update.vectors["id"].tobytes().hex(), "roster": members, "leader": name}
                    self._log.keep_keys(self._epoch, about, pieces)
                    return
        raise QuorumError("no site could make the job key", remedy="See failures.jsonl for the reasons")

    def _task(self, kind: Any, number: int, name: str, base: int, *, snapshot: bool = False, **more: Any) -> Task:
        """A task for one site: the sums between what it holds and the model of round `base`, and its wrapped keys.

        Args:
            more: what its config says beside.
        """
        first, about, vectors = self.now.accepted.get(name, 1), dict[str, Any](), dict[str, Any]()
        sealed = self._log.snapshot
        if sealed is not None and first <= sealed.about["round"]:
            first = sealed.about["round"] + 1
            about["sealed"], vectors["sealed"] = sealed.about, np.frombuffer(sealed.pieces[0], np.uint8)
        sums = {n: self._log.get(n) for n in range(first, base + 1)}
        for n, entry in sums.items():
            vectors |= as_vectors(f"sum.{n}", entry.pieces)
        epochs = {int(e.about["epoch"]) for e in sums.values()} | {self._epoch}
        epochs |= {int(sealed.about["epoch"])} if sealed and "sealed" in about else set()
        for epoch, entry in self._log.keys().items():
            if epoch in epochs and name in entry.about["names"]:
                piece = entry.pieces[entry.about["names"].index(name)]
                vectors[f"key.{epoch}"] = np.frombuffer(piece, np.uint8)
        about |= {"epoch": self._epoch, "attempt": self._attempt, "base": base, "snapshot": snapshot}
        about |= {"sums": {str(n): entry.about for n, entry in sums.items()}}
        config = config_for(self, number, name, self._largest())
        return Task(number, kind, vectors, config | {"stages": self._about(**about), **more})

    def _snapshot_is_due(self, number: int) -> bool:
        """Now and then, and under a new key until there is one: new members cannot open what was sent before."""
        if number == 1 or (number - 1) % self._encrypt.snapshot == 0:
            return number > 1
        sealed = self._log.snapshot
        return self._epoch > 1 and (sealed is None or sealed.about["epoch"] != self._epoch)

    def _largest(self) -> int:
        """Bytes that no reply exceeds: an update with full ciphertexts, and a snapshot."""
        values = self.plan.length
        return int(2.2 * self.plan.params.bytes_per_value * values) + 16 * 4 * values + (1 << 20)

    def _collect(self, number: int, attempt: int) -> Collected:
        self._attempt = attempt
        if attempt == 0:
            self._elect(number)
        names = self._cohort(number, attempt)
        sealing = names[number % len(names)] if self._snapshot_is_due(number) else ""
        got = _Sealed(self, number, names)
        try:
            shares = self._masked(got, names)
        except Refused as refusal:
            give_up(self, got, refusal)
            return got
        tasks = {
            n: self._task("fit", number, n, number - 1, snapshot=n == sealing, cohort=len(shares))
            for n in sorted(shares)
        }
        for name, pieces in shares.items():
            tasks[name] = replace(tasks[name], vectors={**tasks[name].vectors, **as_arrays(pieces)})
        got.down += sum(nbytes(task.vectors) for task in tasks.values())
        gate = SealedGate(self.now.run, number, frozenset(tasks), {}, 1.0)
        for reply in self.backend.exchange(tasks, self.fed.deadline):
            checked = got.take(self, admit(self, gate, reply))
            if isinstance(checked, Failure) and checked.reason == "state" and keeps_nothing(self.fed.strategy):
                self.now.accepted = {n: r for n, r in self.now.accepted.items() if n != checked.client}
            got.failed += isinstance(checked, Failure)
            self.tell(Event("fit", number, reply.client, checked))
        try:
            got.seal()
        except Refused as refusal:
            give_up(self, got, refusal)
        return got

    def _masked(self, got: "_Sealed", names: list[str]) -> dict[str, dict[str, bytes]]:
        """Under hybrid the masks are prepared first; by site what its task carries for that."""
        if self.plan.pipeline.find(Mask) is None:
            return {name: {} for name in names}
        group = group_of(self.now.run, got.number, self._attempt, self.roster, tuple(names), self.plan)
        got.masking = Masking(self, got, group)
        got.masking.prepare()
        return got.masking.inbox

    def _step(self, number: int, got: Collected) -> None:
        """The sum goes into the log; the sites will run the strategy's step on it."""
        assert isinstance(got, _Sealed)
        self._write_metrics(got)
        working = sorted(name for name, weight in got.accepted.items() if weight)
        about = {"clients": working, "epoch": self._epoch, "attempt": self._attempt, **got.about}
        self._log.add(number, about, got.frames)
        if got.snapshot is not None:
            self._log.keep_snapshot(number - 1, self._epoch, got.snapshot)
            self._log.drop_to(number - 1)
        self.now.accepted = self.now.accepted | dict.fromkeys(working, number)

    def _evaluation_tasks(self, local_models: Any) -> dict[str, Task]:
        return {name: self._task("evaluate", self.now.round, name, self.now.round) for name in self.sites}

    def _agreeing(self, scores: dict[str, Evaluation]) -> dict[str, Evaluation]:
        """Only sites whose model is that of the majority; the others are recorded as diverged."""
        digests = {name: score.metrics.get(DIGEST) for name, score in scores.items()}
        common = Counter(digests.values()).most_common(1)
        agreed_, own = {}, common[0][0] if common else None
        for name, score in scores.items():
            if digests[name] == own:
                agreed_[name] = replace(score, metrics={k: v for k, v in score.metrics.items() if k != DIGEST})
            else:
                record(self, Failure(name, self.now.round, "diverged", "its model is not that of the other sites"))
        return agreed_


class _Sealed(Summed):
    """One round's encrypted updates."""

    total: Accumulator

    def __init__(self, engine: BlindEngine, number: int, names: list[str]) -> None:
        super().__init__(engine, number, names)
        self._engine: BlindEngine = engine
        key = bytes.fromhex(engine._log.keys()[engine._epoch].about["id"])
        label = engine.plan.label(engine.now.run, number, engine._attempt, key)
        verifiers = {engine.roster.number(name): engine.roster[name].verifier for name in names}
        self.total = Accumulator(engine.plan.params, label, verifiers)
        self.frames: list[bytes] = []
        self.snapshot: bytes | None = None
        self.masking: Masking | None = None
        self.about: dict[str, Any] = {}

    def take(self, engine: StagedEngine, reply: Update | Failure) -> Update | Failure:
        """All frames of one site, or none; and the snapshot, where one was asked for."""
        taken = super().take(engine, reply)
        if isinstance(taken, Update) and "snapshot" in taken.vectors:
            self.snapshot = taken.vectors["snapshot"].tobytes()
        return taken

    def seal(self) -> None:
        """Make the frames of the sum, if there is one that may be decrypted.

        Raises:
            Refused: the masks in it cannot be removed.
        """
        if len(self.total.participants) < self._engine.least:
            return
        if self.masking is not None:
            survivors = sorted(self._engine.roster.names[number] for number in self.total.participants)
            opened = self.masking.finish(survivors).to_json()
            keys = {name: data.hex() for name, data in self.masking.public.items()}
            self.about = {"unmasking": {**opened, "keys": keys, "group": list(self.masking.group.names)}}
        self.frames = list(self.total.frames(self._engine.identity.signer))
