"""Files from strangers: size caps, no devices, no way out of the root, and trees that appear whole or not at all."""

import json
import os
import re
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polypfed.core.errors import DataError

Progress = Callable[[int, int], None]
"""Called as `progress(done, total)`."""

MAX_FILE_BYTES = 64 * 2**20
_UNSAFE = re.compile(r"[^\w.-]")


def read_file(path: Path, cap: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a regular file of at most `cap` bytes.

    Raises:
        DataError: missing, unreadable, too large, or a pipe, device or folder (which are never waited for).
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise DataError("not a regular file", where=path)
            if found.st_size > cap:
                raise DataError(f"{found.st_size:,} bytes, more than the {cap:,} allowed", where=path)
            return file.read(cap)
    except FileNotFoundError:
        raise DataError("no such file", where=path) from None
    except (OSError, ValueError) as fault:  # ValueError: a NUL in the name
        raise DataError(f"cannot be read ({getattr(fault, 'strerror', None) or fault})", where=path) from None


def read_json(path: Path, cap: int = MAX_FILE_BYTES) -> Any:
    """Parsed JSON; DataError if it is not valid."""
    try:
        return json.loads(read_file(path, cap))
    except (ValueError, RecursionError) as fault:
        raise DataError(f"not valid JSON ({fault})", where=path) from None


def inside(root: Path, path: Path) -> Path:
    """`path`, after making sure that neither a link nor `..` leads out of `root`.

    Raises:
        DataError: the path ends outside `root`.
    """
    try:
        ok = path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # a NUL in the name, a loop of links
        ok = False
    if not ok:
        raise DataError("leads out of the data folder", where=path, remedy="Copy the file instead of linking to it")
    return path


def list_folder(folder: Path) -> list[Path]:
    """Visible files of `folder`, by code point; hidden files and `*.cache` are passed over, sub-folders refused.

    Raises:
        DataError: `folder` is missing or holds a sub-folder.
    """
    if not folder.is_dir():
        raise DataError("no such folder", where=folder)
    found = sorted((p for p in folder.iterdir() if not _ignored(p.name)), key=lambda p: p.name)
    for path in found:
        if path.is_dir():
            remedy = "Point to the folder one level down"
            raise DataError("a folder where files are expected", where=path, remedy=remedy)
    return found


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.endswith(".cache") or name in ("Thumbs.db", "desktop.ini")


def safe_name(name: str) -> str:
    """A name without spaces, separators or control characters.

    Raises:
        DataError: nothing is left, or it is longer than 120 characters.

    >>> safe_name("31_endocv2021_positive_329 2")
    '31_endocv2021_positive_329_2'
    """
    safe = _UNSAFE.sub("_", unicodedata.normalize("NFC", name))
    safe = "_" + safe[1:] if safe[:1] in (".", "-") else safe
    if not safe or len(safe.encode()) > 120:
        raise DataError("not usable as a name (empty or longer than 120 bytes)", where=repr(name))
    return safe


def refuse_equal(names: Iterable[str], where: object) -> None:
    """Raise DataError if two names are equal on a file system that ignores case."""
    seen: dict[str, str] = {}
    for name in names:
        if (key := name.casefold()) in seen:
            raise DataError(f"the same name twice: '{seen[key]}' and '{name}'", where=where, remedy="Rename one")
        seen[key] = name


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `folder` if the block succeeds, and vanishes if it does not.

    Raises:
        DataError: `folder` exists and is not empty, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError("exists and is not empty", where=folder, remedy="Choose another folder or delete this one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as fault:
        raise DataError(f"cannot be written ({fault.strerror})", where=folder) from None
    try:
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private; the tree is an ordinary one
        yield temporary
        os.replace(temporary, folder)
    except OSError as fault:
        raise DataError(f"cannot be written ({fault.strerror})", where=folder) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and one spelling for each value, so that it can be hashed."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"
