"""What the server's audit log says of a run: who did what, when, with which model, and what it cost."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polypfed.clients.plan import digest, mode_of
from polypfed.core import audit
from polypfed.core.audit import AuditLog, Head
from polypfed.core.messages import Failure, Update
from polypfed.federation.plan import task_config
from polypfed.federation.protocol import Event

if TYPE_CHECKING:
    from polypfed.federation.engine import Engine

LOG = "audit.jsonl"
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,39}")


class Witness:
    """Writes RUN/audit.jsonl for one engine. Without a folder it writes nothing."""

    def __init__(self, engine: "Engine", folder: Path | None, signer: Callable[[], Any]) -> None:
        self._engine, self._path, self._signer = engine, folder / LOG if folder else None, signer
        self._log: AuditLog | None = None

    def open(self, event: str, skipped: int | None = None) -> None:
        """Begin or go on, and say so.

        Raises:
            AuditError: the log is not the one that the checkpoint knows.
        """
        if self._path is None:
            return
        now = self._engine.now
        pin = Head(**now.audit) if now.audit else Head()
        lost = not self._path.exists() and pin.count
        self._log = AuditLog(self._path, self._signer(), None if lost else pin)
        if lost:
            self._add("anew", lost=pin.count)
        config = task_config(self._engine.fed)
        self._add(
            event, round=now.round, subject=now.settings.get("layout", ""), sites=len(self._engine.sites),
            quorum=self._engine.fed.quorum, plan=digest(config), privacy=mode_of(config),
            strategy=str(config["strategy"]["name"]), skipped=skipped,
        )  # fmt: skip

    def saw(self, event: Event) -> None:
        """A round began or was given up, or an update was accepted; failures come by `failed`."""
        if self._log is None:
            return
        if event.kind in ("round", "abandoned"):
            self._add(event.kind, round=event.round)
        elif event.kind == "fit" and isinstance(event.reply, Update):
            update = event.reply
            vectors = (vector.data for _, vector in sorted(update.vectors.items()))
            signed = bool(update.signature)
            self._add("accept", event.site, event.round, audit.sha256(*vectors), weight=update.weight, signed=signed)

    def failed(self, failure: Failure) -> None:
        """Somebody could not, or was refused. What they said of it may hold anything, and stays out."""
        reason = failure.reason if _PLAIN.fullmatch(failure.reason) else "other"
        self._add("failure", failure.client, failure.round, reason=reason)

    def spent(self, round: int, epsilon: float) -> None:
        """Privacy that the next attempt will have cost."""
        self._add("epsilon", round=round, epsilon=float(epsilon))

    def done(self, rejected: bool) -> None:
        """A round is complete; `rejected`: its model was put aside."""
        now = self._engine.now
        model = audit.sha256(now.x.data) if now.x.size else ""
        self._add("rejected" if rejected else "commit", round=now.round, subject=model, sites=len(now.accepted))

    def stopped(self, kind: type[BaseException]) -> None:
        """The run ended before its last round: an error, a signal. A disk that refuses even this is not asked again."""
        self._add("stopped", reason=kind.__name__)
        with suppress(OSError):
            self.seal()

    def seal(self) -> dict[str, Any]:
        """All of it to the disk; the head for the checkpoint."""
        if self._log is None:
            return {}
        head = self._log.seal()
        return {"count": head.count, "hash": head.hash, "size": head.size}

    def head(self) -> dict[str, Any]:
        """What tasks say of the log, so that each site can note it."""
        if self._log is None or not self._engine.now.audit:
            return {}
        kept = self._engine.now.audit
        return {"audit": {"count": kept["count"], "hash": kept["hash"]}}

    def _add(self, event: str, who: str = "", round: int = 0, subject: str = "", **facts: object) -> None:
        if self._log is None:
            return
        actor = "server" if not who else who if who in self._engine.sites else "stranger"
        self._log.add(event, actor, run=self._engine.now.run, round=round, subject=subject, **facts)
