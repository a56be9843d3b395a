"""The machine: Python, processors, memory, disk, clock."""

import ctypes
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from polypfed.doctor.finding import Finding, ok

MEMORY_GB, DISK_GB = 2.0, 2.0
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
_SLACK = 60.0  # seconds that a witness may be ahead


def python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    """The interpreter is new enough."""
    text = ".".join(map(str, version))
    good = version >= (3, 11)
    return ok("Python", text) if good else Finding("Python", "error", text, "Install Python 3.11 or newer")


def processors() -> Finding:
    """Those this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ok("processors", f"{cores} for this process, {platform.machine()}")


def memory(least_gb: float = MEMORY_GB, meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> Iterator[Finding]:
    """What is free of the machine, or of the container where that is less.

    Source: proc_meminfo(5); the kernel's cgroup-v2.rst for memory.max and memory.current.
    """
    free = [x for x in (_available(meminfo), _allowed(cgroup)) if x is not None]
    if not free:
        return
    gigabytes = min(free) / 1e9
    detail = f"{gigabytes:.1f} GB available"
    if gigabytes >= least_gb:
        yield ok("memory", detail)
        return
    remedy = "Use [backend] workers = 1 and a smaller [train] batch, or close other programs"
    yield Finding("memory", "error" if gigabytes < least_gb / 4 else "note", f"{detail}, {least_gb:g} wanted", remedy)


def _available(meminfo: Path) -> float | None:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable")), None)


def _allowed(cgroup: Path) -> float | None:
    try:
        most = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        return None if most == "max" else float(most) - float((cgroup / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def disk(folder: Path, least_gb: float = DISK_GB, what: str = "disk") -> Finding:
    """Room where runs, states or samples are kept, and leave to write there."""
    parent = next(p for p in [folder.absolute(), *folder.absolute().parents] if p.exists())
    if not os.access(parent, os.W_OK):
        return Finding(what, "error", f"{parent} cannot be written", "Choose another folder, or change its owner")
    free = shutil.disk_usage(parent).free / 1e9
    detail = f"{free:.1f} GB free at {parent}"
    if free >= least_gb:
        return ok(what, detail)
    return Finding(what, "error", f"{detail}, {least_gb:g} wanted", f"Make room at {parent}, or use another disk")


def clock(witnesses: Mapping[str, float], now: float | None = None, synchronised: bool | None = None) -> Finding:
    """The clock is not behind what has happened already, and is kept in step.

    Args:
        witnesses: times in seconds since 1970 that are past on a right clock, by what tells them.
        now: the clock; None asks it. synchronised: None asks the kernel.

    A site whose clock is over 5 s fast or 5 min slow is turned away by Flower's server without a word about clocks.
    """
    now = time.time() if now is None else now
    shown = _date(now)
    remedy = "Set the clock: timedatectl set-ntp true, or date -s; a board without a battery needs NTP or a GPS"
    late = [(when, name) for name, when in witnesses.items() if when > now + _SLACK]
    if late:
        when, name = max(late)
        return Finding("clock", "error", f"it says {shown}, but {name} is of {_date(when)}", remedy)
    if (_synchronised() if synchronised is None else synchronised) is False:
        detail = f"{shown}, not kept in step with any other clock (5 s fast is too much for a Flower site)"
        return Finding("clock", "note", detail, "timedatectl set-ntp true, or name a time server of your network")
    return ok("clock", shown)


def installed() -> dict[str, float]:
    """When this very file was put here: a witness for the clock."""
    return {"the installation of polypfed": Path(__file__).stat().st_ctime}


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _synchronised() -> bool | None:
    """What the kernel says of its clock; adjtimex(2): 5 is TIME_ERROR, a negative number no permission to ask."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(ctypes.create_string_buffer(512)))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != 5
