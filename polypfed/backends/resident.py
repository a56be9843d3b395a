"""A resident worker: the process that holds a site's model and data between messages.

An engine starts a new process for every message; it would load torch and the model anew each time. That process only
relays the task over a Unix socket to this one, whose worker stays. A worker that dies or passes the deadline is
answered for at once, long before an engine notices.

Frames on the socket: length (uint64, little endian), deadline in seconds (float64), a message of core/messages.py.
"""

import logging
import multiprocessing
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path

from polypfed.backends.local import Local
from polypfed.backends.site_file import Later, SiteFile
from polypfed.core.errors import ConfigError, MessageError
from polypfed.core.messages import Failure, Reply, Task, decode, encode

log = logging.getLogger(__name__)
_HEAD = struct.Struct("<Qd")
_MOST = 4 << 30  # bytes of a frame
_PATIENCE = 60.0  # seconds for a task to come in whole
_GRACE = 15.0  # seconds that the relay waits beyond the deadline: a worker that was cut is answered for at once


class Resident:
    """Serves one site's tasks, one at a time.

    Args:
        site: whose client to hold.
        path: of the socket, in a folder that only its owner may enter.
    """

    def __init__(self, site: SiteFile, path: Path) -> None:
        self.site, self.path = site, path
        self._local = Local(workers=2)  # one client, hence one process; 1 would mean this one
        self._socket = socket.socket(socket.AF_UNIX)
        self._closed = threading.Event()

    def __enter__(self) -> "Resident":
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.parent.chmod(0o700)
        self.path.unlink(missing_ok=True)
        try:
            self._socket.bind(str(self.path))
        except OSError as error:
            raise ConfigError(f"cannot be a socket ({error})", where=self.path) from None
        self._socket.listen(4)
        self._local.host([Later(self.site)], self.site.state)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        _end_work()
        self._thread.join(10)
        self._local.close()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                try:
                    self._answer(connection)
                except (OSError, MessageError) as error:
                    log.warning("%s: a message was lost: %s", self.site.name, error)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(_PATIENCE)
        deadline, data = _receive(connection)
        connection.settimeout(None)
        task = decode(data)
        if not isinstance(task, Task):
            raise MessageError(f"{type(task).__name__}, not a Task")
        done = threading.Event()
        watch = threading.Thread(target=_watch, args=(connection, done), daemon=True)
        watch.start()
        try:
            reply = next(iter(self._local.exchange({self.site.name: task}, deadline)))
        finally:
            done.set()
            watch.join()
        log.info("%s, round %d: %s: %s", self.site.name, task.round, task.kind, getattr(reply, "reason", "done"))
        _send(connection, encode(reply), 0.0)


def ask(path: Path, name: str, task: Task, deadline: float) -> Reply:
    """What the resident worker behind the socket at `path` answers; a Failure if it does not."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(deadline + _GRACE)
            connection.connect(str(path))
            _send(connection, encode(task), deadline)
            reply = decode(_receive(connection)[1])
    except TimeoutError:
        return Failure(name, task.round, "deadline", "the resident worker did not answer in time", task.run)
    except (OSError, MessageError) as error:
        return Failure(name, task.round, "lost", f"the resident worker is not there ({error})", task.run)
    if isinstance(reply, Task):
        return Failure(name, task.round, "header", "a Task, not a reply", task.run)
    return reply


def _send(connection: socket.socket, data: bytes, deadline: float) -> None:
    connection.sendall(_HEAD.pack(len(data), deadline))
    connection.sendall(data)


def _receive(connection: socket.socket) -> tuple[float, bytes]:
    length, deadline = _HEAD.unpack(_exactly(connection, _HEAD.size))
    if length > _MOST:
        raise MessageError(f"a frame of {length} bytes")
    return deadline, bytes(_exactly(connection, length))


def _exactly(connection: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view, got = memoryview(data), 0
    while got < count:
        read = connection.recv_into(view[got:])
        if not read:
            raise MessageError("the connection ended within a message")
        got += read
    return data


def _watch(connection: socket.socket, done: threading.Event) -> None:
    """If the other end goes, nobody waits for the answer: end the work, so that the next task finds a free worker."""
    while not done.wait(0.5):
        try:
            gone = connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            continue
        except OSError:
            gone = True
        if gone:
            _end_work()
            return


def _end_work() -> None:
    for child in multiprocessing.active_children():
        child.kill()
