"""Processes in which clients train: one that crashes, hangs or eats all memory is a Failure, and the job goes on."""

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from polypfed.backends.local import _late, _lost, _Worker
from polypfed.clients.base import Client
from polypfed.core.messages import Failure, Reply, Task, decode, encode

_LOOK = 0.1  # seconds between two looks at the abort signal


class Pool:
    """Up to `size` processes that serve these clients; any may serve any, since what a site keeps lies on disk.

    Args:
        directory: the clients' state is kept below `directory`/sites.
    """

    def __init__(self, clients: Sequence[Client], directory: Path, size: int) -> None:
        self._clients, self._directory = list(clients), directory
        self._idle = queue.LifoQueue[_Worker | None]()  # the warm ones first; None is one not started yet
        for _ in range(size):
            self._idle.put(None)
        self._all = dict[int, _Worker]()
        self._lock = threading.Lock()
        self._closed = False

    def warm(self) -> None:
        """Start all processes now.

        Raises:
            ConfigError: the clients cannot be sent to one.
        """
        waiting = [self._idle.get() for _ in range(self._idle.qsize())]
        for worker in waiting:
            self._idle.put(self._renew(None) if worker is None else worker)

    def perform(self, name: str, task: Task, end: float, aborted: Callable[[], bool] = lambda: False) -> Reply:
        """The answer of the client called `name`; a Failure if its process ends, or monotonic() passes `end`."""
        answer = self.forward(name, encode(task), task, end, aborted)
        reply = answer if isinstance(answer, Failure) else decode(answer)
        return _lost(name, task) if isinstance(reply, Task) else reply

    def forward(
        self, name: str, data: bytes, task: Task, end: float, aborted: Callable[[], bool] = lambda: False
    ) -> bytes | Failure:
        """As `perform`, of a task that is encoded already, and with an encoded reply."""
        try:
            worker = self._idle.get(timeout=max(0.0, min(end - monotonic(), threading.TIMEOUT_MAX)))
        except queue.Empty:
            return _late(name, task)
        try:
            if worker is None or not worker.process.is_alive():
                worker = self._renew(worker)
            answer = _ask(worker, name, data, task, end, aborted)
            if isinstance(answer, Failure):  # its process has ended, or is at work on what nobody waits for
                self._drop(worker)
                worker = None
            return answer
        finally:
            self._idle.put(worker)

    def _renew(self, worker: _Worker | None) -> _Worker:
        if worker is not None:
            self._drop(worker)
        fresh = _Worker.start(self._clients, self._directory)
        with self._lock:
            self._all[id(fresh)] = fresh
            closed = self._closed
        if closed:
            fresh.stop()
        return fresh

    def _drop(self, worker: _Worker) -> None:
        """End this process; the next task that needs one starts another."""
        with self._lock:
            self._all.pop(id(worker), None)
        worker.stop()

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._closed = True
            workers = list(self._all.values())
            self._all.clear()
        for worker in workers:
            worker.process.kill()
            worker.process.join()


def _ask(
    worker: _Worker, name: str, data: bytes, task: Task, end: float, aborted: Callable[[], bool]
) -> bytes | Failure:
    try:
        worker.pipe.send_bytes(name.encode())
        worker.pipe.send_bytes(data)
        while not worker.pipe.poll(min(_LOOK, max(0.0, end - monotonic()))):
            if aborted():
                return Failure(name, task.round, "aborted", "the job was aborted", task.run)
            if monotonic() >= end:
                return _late(name, task)
        return worker.pipe.recv_bytes()
    except (EOFError, OSError):
        return _lost(name, task)
