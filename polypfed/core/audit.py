"""The audit log: one JSON object a line, each with the SHA-256 of the one before it; a head says where it ends.

A line holds words and numbers only, by a pattern that no path, file name or sentence fits. `seal` writes the head
beside the log, signed where there is an identity; whoever else keeps that head (the run's checkpoint, the sites) can
tell that lines are missing at the end, which no chain shows by itself.
"""

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from polypfed.core.errors import AuditError, CheckpointError, MessageError
from polypfed.core.files import append_lines, read_framed, write_framed
from polypfed.core.messages import strict_json

Entry = dict[str, Any]
START = "0" * 64
"""What the first line names as the hash of the one before it."""

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_:@+-]{0,127}|")
_FIELDS = ("n", "utc", "mono", "actor", "event", "run", "round", "subject", "facts", "prev")
_DOMAIN = b"polypfed audit head 1"


class Signer(Protocol):
    """Ed25519PrivateKey of `cryptography`, or anything else that signs."""

    def sign(self, data: bytes, /) -> bytes: ...


class Verifier(Protocol):
    """The other half; raises if the signature is wrong."""

    def verify(self, signature: bytes, data: bytes, /) -> None: ...


@dataclass(frozen=True)
class Head:
    """The end of a log: `count` lines, of which `hash` is the last one's; `size` is the file's in bytes."""

    count: int = 0
    hash: str = START
    size: int = 0

    def signed(self) -> bytes:
        """What a signature of the head is over."""
        return _DOMAIN + json.dumps([self.count, self.hash]).encode()


class AuditLog:
    """A log to write to. One process at a time.

    Opening it takes one read of the head; lines behind the head (of a process that was killed) are checked and kept,
    and a last line that is not whole is cut off.

    Args:
        path: of the log; the head lies beside it as `*.head`.
        signer: of the heads; None leaves them unsigned.
        pin: a head from elsewhere that the log must hold.

    Raises:
        AuditError: the log is shorter than its head or the pin, or other than they say.
    """

    def __init__(self, path: Path, signer: Signer | None = None, pin: Head | None = None) -> None:
        self.path, self._signer, self._waiting = path, signer, list[str]()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.head = _resumed(path)
        self._written = self.head.size
        if pin is not None and pin.count:
            check_pins(path, [pin])

    def add(
        self, event: str, actor: str = "", *, run: str = "", round: int = 0, subject: str = "", **facts: object
    ) -> Entry:
        """One line; it is on the disk after `seal`.

        Args:
            event, actor, subject: what happened, who did it, and the hash of what it was done to.
            facts: words and finite numbers; None is left out.

        Raises:
            AuditError: a value is neither.
        """
        entry: Entry = {
            "n": self.head.count, "utc": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "mono": round_to(time.monotonic()), "actor": _word(actor), "event": _word(event), "run": _word(run),
            "round": int(round), "subject": _word(subject),
            "facts": {k: _fact(v) for k, v in facts.items() if v is not None}, "prev": self.head.hash,
        }  # fmt: skip
        line = line_of(entry)
        self._waiting.append(line)
        self.head = Head(entry["n"] + 1, _digest(line), self.head.size + len(line) + 1)
        return entry

    def seal(self) -> Head:
        """Write the lines, then the head, both to the disk; the head.

        Raises:
            OSError: the disk does not take them.
        """
        try:
            append_lines(self.path, self._waiting)
        except OSError:
            with suppress(OSError):
                os.truncate(self.path, self._written)  # so that they do not come twice if they are sealed later
            raise
        self._waiting, self._written = [], self.head.size
        signature = b"" if self._signer is None else self._signer.sign(self.head.signed())
        write_head(self.path, self.head, signature)
        return self.head

    @property
    def signature(self) -> bytes:
        """Of the present head; b"" without a signer."""
        return b"" if self._signer is None else self._signer.sign(self.head.signed())


@dataclass(frozen=True)
class Findings:
    """What `verify` found.

    Attributes:
        head: of the lines that hold together. line: the first bad one, from 1; 0 if none is. problem: what is wrong.
        unsealed: lines behind the last head: of a process at work, or one that was killed.
        signed: was the head's signature checked?
    """

    head: Head
    line: int = 0
    problem: str = ""
    unsealed: int = 0
    signed: bool = False

    @property
    def good(self) -> bool:
        """Nothing is wrong."""
        return not self.problem


def verify(path: Path, pins: Iterable[Head] = (), verifier: Verifier | None = None) -> Findings:
    """Check every line, the head beside the log, and heads from elsewhere."""
    head, at = Head(), {0: START}
    try:
        for entry_, line in lines(path):
            head = Head(head.count + 1, _digest(line), head.size + len(line) + 1)
            at[head.count] = head.hash
            _check(entry_, line, head.count - 1, at[head.count - 1])
    except AuditError as error:
        return Findings(head, int(error.where or 0), error.problem)
    try:
        sealed, signature = read_head(path)
        if verifier is not None:
            verifier.verify(signature, sealed.signed())
    except AuditError as error:
        return Findings(head, head.count + 1, error.problem)
    except Exception as error:  # noqa: BLE001 - verifiers raise what they like
        return Findings(head, head.count, f"the head's signature is wrong ({type(error).__name__})")
    for pin in (sealed, *pins):
        if at.get(pin.count) != pin.hash:
            where = min(pin.count, head.count + 1)
            return Findings(head, where, f"the head of {pin.count} lines is not in it: lines are missing or changed")
    return Findings(head, unsealed=head.count - sealed.count, signed=verifier is not None)


def check_pins(path: Path, pins: Iterable[Head]) -> None:
    """See that heads from elsewhere are in the log.

    Raises:
        AuditError: the log is damaged, or one of them is not.
    """
    found = verify(path, pins)
    if not found.good:
        raise AuditError(
            f"line {found.line}: {found.problem}", where=path,
            remedy="Put the log back from a backup, or move it away: a new one will say that it begins anew",
        )  # fmt: skip


def entries(path: Path) -> list[Entry]:
    """All lines as they are, unchecked.

    Raises:
        AuditError: a line is not JSON.
    """
    return [entry for entry, _ in lines(path)]


def lines(path: Path) -> Iterator[tuple[Entry, str]]:
    """Each line's object and text.

    Raises:
        AuditError: the file cannot be read, or a line (`where`, from 1) is not one of ours.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise AuditError(f"cannot be read ({error.strerror})", where=1) from None
    pieces = text.split(b"\n")
    if last := pieces.pop():
        pieces.append(last)
    for number, piece in enumerate(pieces, 1):
        if number == len(pieces) and last:
            raise AuditError("is cut short", where=number)
        try:
            yield strict_json(piece), piece.decode()
        except MessageError as error:
            raise AuditError(error.problem, where=number) from None


def heads_in(path: Path) -> list[Head]:
    """The heads of another log that this one has noted: what a site was told by the server."""
    noted = (e for e in entries(path) if e.get("event") == "head")
    return [Head(int(e["facts"]["count"]), str(e["subject"])) for e in noted]


def line_of(entry: Mapping[str, Any]) -> str:
    """An entry as it stands in the file, without the line's end."""
    return json.dumps(dict(entry), sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_head(path: Path, head: Head, signature: bytes = b"") -> None:
    """Write the head beside the log."""
    write_framed(_beside(path), {"count": head.count, "hash": head.hash, "size": head.size}, signature)


def read_head(path: Path) -> tuple[Head, bytes]:
    """The head beside the log, and its signature.

    Raises:
        AuditError: it is missing or damaged.
    """
    try:
        header, signature = read_framed(_beside(path))
        return Head(int(header["count"]), str(header["hash"]), int(header["size"])), signature
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise AuditError(f"has no head: {error}", where=path) from None


def sha256(*vectors: Any) -> str:
    """Hash of arrays, bytes or models, as it stands in a log."""
    held = hashlib.sha256()
    for vector in vectors:
        held.update(vector)
    return held.hexdigest()


def round_to(value: float) -> float:
    """Milliseconds are enough."""
    return round(value, 3)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _digest(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()


def _check(entry: Entry, line: str, number: int, prev: str) -> None:
    if set(entry) != set(_FIELDS) or line_of(entry) != line:
        raise AuditError("has been changed: it is not as it is written", where=number + 1)
    if entry["n"] != number:
        raise AuditError(f"is numbered {entry['n']}, not {number}", where=number + 1)
    if entry["prev"] != prev:
        raise AuditError("does not follow the line before it", where=number + 1)


def _resumed(path: Path) -> Head:
    """Where the log ends; what a killed process left behind the head is taken in, a torn last line is cut off."""
    if not path.exists():
        if _beside(path).exists():
            _beside(path).unlink()
        return Head()
    if not _beside(path).exists():
        head = Head()
    else:
        head, _ = read_head(path)
    size = path.stat().st_size
    if size == head.size:
        return head
    if size < head.size:
        raise AuditError(f"has {size} bytes, its head says {head.size}", where=path, remedy="Restore it from a backup")
    with open(path, "rb+") as file:
        file.seek(head.size)
        rest = file.read()
        whole = rest[: rest.rfind(b"\n") + 1]
        file.truncate(head.size + len(whole))
        os.fsync(file.fileno())
    for piece in whole.splitlines():
        try:
            entry, line = strict_json(piece), piece.decode()
            _check(entry, line, head.count, head.hash)
        except (MessageError, AuditError) as error:
            raise AuditError(f"line {head.count + 1}: {error.problem}", where=path) from None
        head = Head(head.count + 1, _digest(line), head.size + len(piece) + 1)
    return head


def _word(value: object) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise AuditError(f"{str(value)[:40]!r} is not a word, and words only are kept", where="audit")
    return value


def _fact(value: object) -> object:
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) < 1 << 53):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return _word(value)
