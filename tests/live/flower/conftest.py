"""Every live test runs without a network but loopback, where the system lets us: nothing needs one."""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

NEW_NETWORK = 0x40000000  # CLONE_NEWNET


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[bool]:
    """Puts this thread, and so all that it starts, into a network namespace of its own; False if that is forbidden."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(NEW_NETWORK):
            yield False
            return
        try:
            _loopback_up()
            yield True
        finally:
            assert libc.setns(before, NEW_NETWORK) == 0
    finally:
        os.close(before)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up, running


def interfaces() -> list[str]:
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    return sorted(line.partition(":")[0].strip() for line in lines)
