"""Whether a process works in a run's folder, without touching its lock: trying it could turn a run away."""

import os
from pathlib import Path

LOCKS = Path("/proc/locks")


def is_open(folder: Path, locks: Path = LOCKS) -> bool | None:
    """True if some process holds the folder's lock, False if none does, None if the system does not say (not Linux).

    Source: proc_locks(5); the sixth field is MAJOR:MINOR:INODE, the first two in hexadecimal.
    """
    holders = _holders(folder, locks)
    return None if holders is None else bool(holders)


def holder(folder: Path, locks: Path = LOCKS) -> int | None:
    """The process that holds the folder's lock, as far as the system tells."""
    return next((pid for pid in _holders(folder, locks) or [] if pid > 0), None)


def _holders(folder: Path, locks: Path) -> list[int] | None:
    try:
        found = (folder / ".lock").stat()
    except OSError:
        return []
    try:
        lines = locks.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    wanted = os.major(found.st_dev), os.minor(found.st_dev), found.st_ino
    held = [line for line in lines if " FLOCK " in line and "->" not in line and _file(line) == wanted]
    return [int(line.split()[4]) for line in held]


def _file(line: str) -> tuple[int, int, int] | None:
    try:
        major, minor, inode = line.split()[5].split(":")
        return int(major, 16), int(minor, 16), int(inode)
    except (IndexError, ValueError):
        return None
