"""Processes in which clients train: one that crashes, hangs or eats all memory is a Failure, and the job goes on.

A client stays in one process, and its Site stays open there: what a protocol of several steps keeps in memory between
them (the secrets of a masked sum, which must not lie on disk) is still there at the next step.
"""

import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic

from polypfed.backends.local import _encoded, _late, _lost, _prepare, _Worker, open_site
from polypfed.backends.nvflare.parcel import Parcel, receive, send
from polypfed.clients.base import Client
from polypfed.clients.site import Site
from polypfed.core.errors import ConfigError
from polypfed.core.messages import Failure, Reply, Task, decode, encode

_KEEP = 32  # processes that are kept when they have nothing to do
_LOOK = 0.1  # seconds between two looks at the abort signal


class Pool:
    """A process for each of these clients, started when it is first needed; up to `size` of them work at once.

    Args:
        directory: the clients' state is kept below `directory`/sites.
    """

    def __init__(self, clients: Sequence[Client], directory: Path, size: int) -> None:
        self._directory, self._size = directory, size
        self._slots = {c.name: _Slot(c) for c in sorted(clients, key=lambda c: c.name)}
        self._turns = threading.Semaphore(size)
        self._closed = False

    def warm(self) -> None:
        """Start the first processes now.

        Raises:
            ConfigError: a client cannot be sent to one.
        """
        for slot in list(self._slots.values())[: self._size]:
            with slot.lock:
                self._worker(slot)

    def perform(self, name: str, task: Task, end: float, aborted: Callable[[], bool] = lambda: False) -> Reply:
        """The answer of the client called `name`; a Failure if its process ends, or monotonic() passes `end`."""
        answer = self.forward(name, encode(task), task, end, aborted)
        reply = answer if isinstance(answer, Failure) else decode(answer.data)
        return _lost(name, task) if isinstance(reply, Task) else reply

    def forward(
        self, name: str, data: bytes | Parcel, task: Task, end: float, aborted: Callable[[], bool] = lambda: False
    ) -> Parcel | Failure:
        """As `perform`, of a task that is encoded already, and with an encoded reply."""
        if not self._turns.acquire(timeout=max(0.0, min(end - monotonic(), threading.TIMEOUT_MAX))):
            return _late(name, task)
        slot = self._slots[name]
        try:
            with slot.lock:
                if self._closed:
                    return _lost(name, task)
                answer = _ask(self._worker(slot), name, data, task, end, aborted)
                # A failure: the process has ended, or is at work on what nobody waits for.
                if isinstance(answer, Failure) or sum(s.worker is not None for s in self._slots.values()) > _KEEP:
                    slot.stop()
                return answer
        except ConfigError as error:
            return Failure(name, task.round, "client", str(error), task.run)
        finally:
            self._turns.release()

    def _worker(self, slot: "_Slot") -> _Worker:
        if slot.worker is not None and not slot.worker.process.is_alive():
            slot.stop()
        if slot.worker is None:
            slot.worker = _Worker.start([slot.client], self._directory, _work)
        return slot.worker

    def close(self) -> None:
        """End the processes; whoever waits for one hears that it is lost."""
        self._closed = True
        for slot in self._slots.values():
            if (worker := slot.worker) is not None:
                worker.process.kill()
                worker.process.join()


class _Slot:
    """A client, its process, and the right to use it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.lock = threading.Lock()
        self.worker: _Worker | None = None

    def stop(self) -> None:
        """End the process; the next task starts another."""
        if self.worker is not None:
            self.worker.stop()
        self.worker = None


def _ask(
    worker: _Worker, name: str, data: bytes | Parcel, task: Task, end: float, aborted: Callable[[], bool]
) -> Parcel | Failure:
    try:
        worker.pipe.send_bytes(name.encode())
        send(worker.pipe, data)
        while not worker.pipe.poll(min(_LOOK, max(0.0, end - monotonic()))):
            if aborted():
                return Failure(name, task.round, "aborted", "the job was aborted", task.run)
            if monotonic() >= end:
                return _late(name, task)
        return receive(worker.pipe)
    except (EOFError, OSError):
        return _lost(name, task)


def _work(pipe: Connection, clients: list[Client], directory: Path | None, modules: list[str]) -> None:
    """A process: one task at a time until the pipe closes; it does not outlive its parent."""
    _prepare(modules)
    by_name, sites = {c.name: c for c in clients}, dict[str, Site]()
    while True:
        try:
            name, task = pipe.recv_bytes().decode(), decode(receive(pipe).data)
        except (EOFError, OSError):
            return
        if isinstance(task, Task):
            if name not in sites:
                sites[name] = open_site(by_name[name], directory)
            send(pipe, _encoded(sites[name].perform(task)))
