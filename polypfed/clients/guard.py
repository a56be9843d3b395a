"""Guard: what stands between a site's client and the server: its owner's policy, its audit log, its signature."""

import fcntl
import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polypfed.clients.base import Client
from polypfed.clients.plan import digest, mode_of
from polypfed.clients.plans import Plans
from polypfed.clients.policy import Policy
from polypfed.core.audit import AuditLog, Signer
from polypfed.core.errors import MessageError, Refused, StateError
from polypfed.core.files import write_atomic
from polypfed.core.messages import Evaluation, Failure, Reply, Task, Update, strict_json
from polypfed.core.signing import base_of, statement
from polypfed.privacy.keyring import IDENTITY, own_signer
from polypfed.privacy.ledger import Ledger

log = logging.getLogger(__name__)
_RUN, _HASH, _REASON = re.compile(r"[0-9a-zA-Z-]{1,64}"), re.compile(r"[0-9a-f]{64}"), re.compile(r"[a-z-]{1,40}")
_DAY = 86400.0


@dataclass(frozen=True)
class Charter:
    """What a site's owner has laid down, and where.

    Attributes:
        policy: what tasks may ask for.
        audit: the site's log; None writes none. keys: folder of its identity; without one nothing is signed.
        plans: folder of waiting and approved plans. budget: file of what each run has cost of the policy's epsilon.
    """

    policy: Policy = field(default_factory=Policy)
    audit: Path | None = None
    keys: Path | None = None
    plans: Path | None = None
    budget: Path | None = None

    @classmethod
    def below(cls, folder: Path | None) -> "Charter":
        """No policy; a log in the site's own folder, and keys if they are there."""
        return cls() if folder is None else cls(audit=folder / "audit.jsonl", keys=folder / "keys")


class Guard:
    """The guard of one site."""

    def __init__(self, name: str, charter: Charter) -> None:
        self.name, self.charter, self.policy = name, charter, charter.policy
        self._noted: Any = None
        keys = charter.keys
        self._keys = keys if keys is not None and (keys / IDENTITY).exists() else None
        self._signing: Signer | None = None

    def permit(self, task: Task, client: Client, records: Path | None = None) -> None:
        """See that the policy allows the task, before anything else is done about it.

        Args:
            records: folder of what the client has noted of single samples; what is too old is deleted.

        Raises:
            Refused: reason "policy". BudgetExhausted: this run may not release any more.
        """
        plans = Plans(self.charter.plans) if self.charter.plans else None
        approved: Sequence[str] = tuple(plans.approved()) if plans and self.policy.approve else ()
        epochs = getattr(client, "epochs", None) if self.policy.max_epochs is not None else None
        try:
            self.policy.check(task, epochs if type(epochs) is int else None, approved)
        except Refused as refusal:
            known = digest(task.config) in (*self.policy.plans, *approved)
            if plans is not None and self.policy.approve and not known:
                plans.ask(task)
            raise Refused("policy", refusal.problem, where=self.name) from None
        if self.policy.keep_samples_days is not None and records is not None:
            forget(records, self.policy.keep_samples_days)
        if task.kind == "fit" and self.policy.epsilon is not None:
            self._charge(task)

    def _charge(self, task: Task) -> None:
        """Keep what this answer will cost before it is made."""
        path, multiplier = self.charter.budget, self.policy.noise(task)
        if path is None or multiplier is None or self.policy.epsilon is None:
            raise StateError("has no place to count what noise has cost", where=self.name)
        try:
            kept = strict_json(path.read_bytes()) if path.exists() else {}
        except MessageError:
            raise StateError("is damaged: what a run has cost is not known", where=path) from None
        fresh = Ledger(self.policy.epsilon, self.policy.delta)
        spent = Ledger.from_json(kept[task.run]) if task.run in kept else fresh
        ledger = replace(spent, epsilon=fresh.epsilon, delta=fresh.delta).charge(multiplier)
        write_atomic(path, json.dumps(kept | {task.run: ledger.to_json()}).encode())

    def close(self, task: Task, reply: Update | Evaluation) -> Update | Evaluation:
        """The reply as it leaves: metrics that may be disclosed, and this site's signature where it has a key."""
        reply = replace(reply, metrics=self.policy.disclosed(reply.metrics))
        if self._keys is None or not isinstance(reply, Update):
            return reply
        self._signing = self._signing or own_signer(self._keys)
        bare = replace(reply, base=base_of(task), run=task.run)
        return replace(bare, signature=self._signing.sign(statement(bare)).hex())

    def note(self, task: Task, reply: Reply) -> None:
        """Write into the site's log what was asked and what left; steps of a protocol are part of their round.

        Raises:
            AuditError: the log has been changed.
        """
        if self.charter.audit is None or (task.kind == "step" and not isinstance(reply, Failure)):
            return
        with alone(self.charter.audit):
            self._write(self.charter.audit, task, reply)

    def _write(self, path: Path, task: Task, reply: Reply) -> None:
        written = AuditLog(path, own_signer(self._keys) if self._keys is not None else None)
        run = task.run if _RUN.fullmatch(task.run) else ""
        self._head(written, task, run)
        facts: dict[str, Any] = {"privacy": mode_of(task.config), "plan": digest(task.config)}
        if isinstance(reply, Failure):
            facts["reason"] = reply.reason if _REASON.fullmatch(reply.reason) else "other"
        else:
            facts |= {"weight": reply.weight, "metrics": len(reply.metrics)}
        epsilon = (task.config.get("stages") or {}).get("epsilon")
        facts |= {"epsilon": float(epsilon)} if isinstance(epsilon, int | float) else {}
        written.add(task.kind, self.name, run=run, round=task.round, subject=base_of(task), **facts)
        written.seal()

    def _head(self, written: AuditLog, task: Task, run: str) -> None:
        """What the server says of its own log, once."""
        told = task.config.get("audit")
        if not isinstance(told, dict) or told == self._noted:
            return
        count, hash_ = told.get("count"), told.get("hash")
        if type(count) is int and isinstance(hash_, str) and _HASH.fullmatch(hash_):
            written.add("head", "server", run=run, round=task.round, subject=hash_, count=count)
            self._noted = dict(told)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """No other process writes the log meanwhile: an engine may run two jobs at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def forget(folder: Path, days: int) -> None:
    """Delete the files directly in `folder` that are older than so many days."""
    oldest = time.time() - days * _DAY
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_file() and path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
            log.info("a record of single samples was older than %d days and is deleted", days)
