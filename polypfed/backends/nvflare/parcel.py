"""Parcels: large messages between processes of this machine, as files in memory whose handles are passed on.

Through a pipe 10 MB are copied six times, and both ends wake for every piece of them; a handle is one byte.
"""

import mmap
import os
from contextlib import suppress
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

_LEAST = 1 << 16  # bytes below which a pipe is as good
_HANDLES: Any = reduction  # its functions for handles are not in the type stubs


class Parcel:
    """A message that has been received; it can be read, or sent on unread.

    Attributes:
        data: the message, read-only. What is made of it keeps the memory alive.
    """

    def __init__(self, data: memoryview, handle: int | None = None) -> None:
        self.data, self._handle = data, handle

    def __del__(self) -> None:
        if self._handle is not None:
            with suppress(OSError):
                os.close(self._handle)


def send(pipe: Connection, message: bytes | Parcel) -> None:
    """Send a message; `receive` takes it at the other end.

    Raises:
        OSError: the other end is gone.
    """
    if isinstance(message, Parcel):
        _post(pipe, message.data, message._handle)
    elif len(message) < _LEAST or not hasattr(os, "memfd_create"):
        _post(pipe, memoryview(message), None)
    else:
        handle = os.memfd_create("polypfed", os.MFD_CLOEXEC)
        try:
            left = memoryview(message)
            while left:
                left = left[os.write(handle, left) :]
            _post(pipe, memoryview(message), handle)
        finally:
            os.close(handle)


def _post(pipe: Connection, data: memoryview, handle: int | None) -> None:
    pipe.send_bytes(b"" if handle is None else len(data).to_bytes(8))
    if handle is None:
        pipe.send_bytes(data)
    else:
        _HANDLES.send_handle(pipe, handle, None)


def receive(pipe: Connection) -> Parcel:
    """The next message.

    Raises:
        EOFError, OSError: the other end is gone.
    """
    size = int.from_bytes(pipe.recv_bytes(8))
    if not size:
        return Parcel(memoryview(pipe.recv_bytes()))
    try:
        handle = _HANDLES.recv_handle(pipe)
    except RuntimeError:
        raise EOFError from None
    try:
        return Parcel(memoryview(mmap.mmap(handle, size, access=mmap.ACCESS_READ)), handle)
    except (OSError, ValueError):  # the file is shorter than the message
        os.close(handle)
        raise EOFError from None
