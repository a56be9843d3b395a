"""A board: its runtime and its accelerator's delegate."""

import platform
import struct
from collections.abc import Iterator
from pathlib import Path

from polypfed.detect.runtime import Delegate, load, runtime
from polypfed.doctor.finding import Finding, attempted

# e_machine of ELF files; source: elf(5) and the System V ABI's list.
_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_VENDOR = (
    "Take the delegate and its libraries from the board's own support package (NXP: libvx_delegate.so with "
    "libtim-vx.so), or run without --delegate"
)


def interpreter() -> Finding:
    """A LiteRT or TFLite runtime loads."""
    return attempted("runtime", lambda: runtime()[1], "pip install 'polypfed[edge]'")


def delegate(text: str, machine: str | None = None) -> Iterator[Finding]:
    """A delegate library is of this machine, is a delegate, and starts.

    Args:
        text: PATH or PATH,key:value as for --delegate. machine: as platform.machine() says it.
    """
    given, machine = Delegate.parse(text), machine or platform.machine()
    what = f"delegate {Path(given.path).name}"
    built = _machine_of(Path(given.path))
    if built and built != machine:
        yield Finding(what, "error", f"{given.path} is built for {built}, this machine is {machine}", _VENDOR)
        return
    yield attempted(what, lambda: _start(given), _VENDOR)


def _start(given: Delegate) -> str:
    load(given)
    return "loads"


def _machine_of(path: Path) -> str | None:
    """What an ELF library is built for, None if it is no such file."""
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError:
        return None
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    code = struct.unpack("<H" if head[5] == 1 else ">H", head[18:20])[0]
    return _MACHINES.get(code, f"machine {code}")
