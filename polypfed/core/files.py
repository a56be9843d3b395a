"""Files that are whole or absent: atomic writes, and a framed format whose SHA-256 is checked before it is read."""

import hashlib
import json
import os
import re
import secrets
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from polypfed.core.errors import CheckpointError, MessageError
from polypfed.core.messages import strict_json

_MAGIC = b"PFEDFILE1"
_PREFIX = struct.Struct("<9s32sQ")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def write_atomic(path: Path, *parts: bytes, mode: int = 0o666) -> None:
    """Write `parts` to `path` so that a crash leaves the old file or the new one, never a part of either.

    Args:
        mode: permissions before the umask; 0o600 for secrets, which then are never readable by others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines and see them on the disk; a crash may leave the last of them torn."""
    with open(path, "ab") as file:
        file.writelines([f"{line}\n".encode() for line in lines])
        file.flush()
        os.fsync(file.fileno())


def sweep(directory: Path) -> None:
    """Remove what a killed `write_atomic` left below `directory`; nobody may be writing there."""
    for leftover in directory.rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(leftover.name):
            leftover.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_framed(path: Path, header: dict[str, Any], body: bytes = b"", mode: int = 0o666) -> None:
    """Write a JSON header and a body under one SHA-256, atomically; `mode` as in `write_atomic`.

    Raises:
        CheckpointError: the header is not plain JSON with finite numbers.
    """
    try:
        head = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"cannot be written ({error})", where=path) from None
    digest = hashlib.sha256(struct.pack("<Q", len(head)) + head)
    digest.update(body)
    write_atomic(path, _PREFIX.pack(_MAGIC, digest.digest(), len(head)), head, body, mode=mode)


def read_framed(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and body of a file written by `write_framed`.

    Raises:
        CheckpointError: the file is missing, cut short or changed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", where=path) from None
    if len(data) < _PREFIX.size:
        raise CheckpointError("is cut short", where=path)
    magic, digest, length = _PREFIX.unpack_from(data)
    if magic != _MAGIC or hashlib.sha256(data[_PREFIX.size - 8 :]).digest() != digest:
        raise CheckpointError("is damaged: its SHA-256 does not match", where=path)
    end = _PREFIX.size + length
    try:
        return strict_json(data[_PREFIX.size : end]), data[end:]
    except MessageError as error:
        raise CheckpointError(str(error), where=path) from None
