"""Whether a process works in a run's folder, without touching its lock: trying it could turn a run away."""

import os
from pathlib import Path

LOCKS = Path("/proc/locks")


def is_open(folder: Path, locks: Path = LOCKS) -> bool | None:
    """True if some process holds the folder's lock, False if none does, None if the system does not say (not Linux).

    Source: proc_locks(5); the sixth field is MAJOR:MINOR:INODE, the first two in hexadecimal.
    """
    try:
        found = (folder / ".lock").stat()
    except OSError:
        return False
    try:
        lines = locks.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    wanted = os.major(found.st_dev), os.minor(found.st_dev), found.st_ino
    return any(wanted == _file(line) for line in lines if " FLOCK " in line and "->" not in line)


def _file(line: str) -> tuple[int, int, int] | None:
    try:
        major, minor, inode = line.split()[5].split(":")
        return int(major, 16), int(minor, 16), int(inode)
    except (IndexError, ValueError):
        return None
