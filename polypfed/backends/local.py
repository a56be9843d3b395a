"""Local: every site on this machine, in this process or in worker processes."""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from polypfed import clients as clients_room
from polypfed.clients.base import Client
from polypfed.clients.site import Site
from polypfed.core.errors import ConfigError, MessageError
from polypfed.core.messages import Failure, Reply, Task, decode, encode
from polypfed.strategies.registry import Registry

if TYPE_CHECKING:
    from polypfed.clients.vectorised import Vectorised

_PATIENCE = 3600.0  # longest single wait, in seconds; the operating system knows no endless one


class Local:
    """Runs clients on this machine.

    Args:
        workers: 1 runs the clients one after another in this process, without serialisation. More start that many
            processes (spawn); a client that kills its process or passes the deadline is a Failure, and the process is
            started anew. The results are the same bits whatever the number.
        vectorised: train small TorchClients of one module together, see `clients.Vectorised`; equal to training them
            one after the other within rounding, and refused where it cannot be.

    Raises:
        ConfigError: workers is not at least 1, or not 1 beside vectorised.
    """

    def __init__(self, workers: int = 1, vectorised: bool = False) -> None:
        if type(workers) is not int or workers < 1:
            raise ConfigError(f"{workers!r} is not a whole number of at least 1", where="workers")
        if vectorised and workers > 1:
            raise ConfigError("clients train together in one process only", where="vectorised", remedy="Use 1 worker")
        self.workers, self.vectorised = workers, vectorised
        self._together: Vectorised | None = None
        self._clients: Sequence[Client] = ()
        self._directory: Path | None = None
        self._sites: dict[str, Site] = {}
        self._pool: list[_Worker] = []
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def clients(self) -> Sequence[str]:
        """The names of the hosted clients, sorted."""
        return sorted(c.name for c in self._clients)

    def host(self, clients: Sequence[Client], directory: Path | None) -> None:
        """Take these clients; worker processes start at the first exchange."""
        self.close()
        if self.vectorised:
            self._together = clients_room.Vectorised(clients)  # torch is imported here
        self._clients, self._directory = list(clients), directory
        if self.workers > 1 and directory is None:  # any worker may serve a site next, so its state needs a place
            self._scratch = tempfile.TemporaryDirectory(prefix="polypfed-")
            self._directory = Path(self._scratch.name)
        if self.workers == 1:
            self._sites = {c.name: open_site(c, directory) for c in clients}

    def close(self) -> None:
        """End the worker processes."""
        for worker in self._pool:
            worker.stop()
        self._pool, self._sites, self._clients, self._together = [], {}, (), None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        """Replies in order of name in this process, in order of arrival from workers."""
        end = monotonic() + deadline
        if self.workers > 1:
            yield from self._dispatch(tasks, end)
            return
        if self._together is not None:
            yield from self._jointly(self._together, tasks, end)
            return
        for name in sorted(tasks):
            yield self._sites[name].perform(tasks[name]) if monotonic() < end else _late(name, tasks[name])

    def _jointly(self, together: "Vectorised", tasks: Mapping[str, Task], end: float) -> Iterator[Reply]:
        for names in together.groups(tasks):
            group = {name: tasks[name] for name in names}
            if monotonic() < end:
                yield from together.perform(self._sites, group)
            else:
                yield from (_late(name, task) for name, task in group.items())

    def _dispatch(self, tasks: Mapping[str, Task], end: float) -> Iterator[Reply]:
        while len(self._pool) < min(self.workers, len(self._clients)):
            self._pool.append(_Worker.start(self._clients, self._directory))
        queue, idle, busy = deque(sorted(tasks)), list(self._pool), dict[str, _Worker]()
        while (queue or busy) and monotonic() < end:
            while pair := self._match(queue, idle, tasks):
                name, worker = pair
                worker = worker if worker.process.is_alive() else self._replace(worker)
                if worker.send(name, tasks[name]):
                    busy[name] = worker
                else:
                    idle.append(self._replace(worker))
                    yield _lost(name, tasks[name])
            for name in _ready(busy, end):
                worker = busy.pop(name)
                reply = worker.receive()
                idle.append(self._replace(worker) if reply is None else worker)
                yield _lost(name, tasks[name]) if reply is None else reply
        for worker in busy.values():
            self._replace(worker)
        yield from (_late(name, tasks[name]) for name in sorted([*busy, *queue]))

    def _match(
        self, queue: deque[str], idle: list["_Worker"], tasks: Mapping[str, Task]
    ) -> tuple[str, "_Worker"] | None:
        """The next site and who serves it, taken off both lists; a site of a masked run has a worker of its own."""
        for name in list(queue) if idle else ():
            home = self._pool[self.clients.index(name) % len(self._pool)] if masked(tasks[name]) else idle[-1]
            if home in idle:
                queue.remove(name)
                idle.remove(home)
                return name, home
        return None

    def _replace(self, worker: "_Worker") -> "_Worker":
        worker.stop()
        fresh = _Worker.start(self._clients, self._directory)
        self._pool[self._pool.index(worker)] = fresh
        return fresh


def open_site(client: Client, directory: Path | None) -> Site:
    """The client in its shell, with its state below `directory`/sites/NAME."""
    place = directory / "sites" / client.name if directory else None
    return Site(client, place, getattr(client, "charter", None))


def _ready(busy: Mapping[str, "_Worker"], end: float) -> list[str]:
    """Sites whose worker has answered or ended; waits for the first of them until `end`."""
    if not busy:
        return []
    pipes = {worker.pipe: name for name, worker in busy.items()}
    ready = wait(list(pipes), timeout=min(max(0.0, end - monotonic()), _PATIENCE))
    return [name for pipe, name in pipes.items() if pipe in ready]


def masked(task: Task) -> bool:
    """Is it part of a run under masks?"""
    return any(stage.get("name") == "mask" for stage in task.config.get("stages", {}).get("list", ()))


def _late(name: str, task: Task) -> Failure:
    return Failure(name, task.round, "deadline", "no answer within the deadline", task.run)


def _lost(name: str, task: Task) -> Failure:
    return Failure(name, task.round, "lost", "the process that ran this site ended", task.run)


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection

    @classmethod
    def start(
        cls, clients: Sequence[Client], directory: Path | None, work: Callable[..., None] | None = None
    ) -> "_Worker":
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work or _work, args=(theirs, list(clients), directory, Registry.modules()), daemon=True
        )
        try:
            process.start()
        except Exception as error:
            ours.close()
            raise ConfigError(
                f"the clients cannot be sent to a worker process ({error})",
                where="workers",
                remedy="Define their functions and classes at the top of a module, or use one worker",
            ) from error
        finally:
            theirs.close()
        return cls(process, ours)

    def send(self, name: str, task: Task) -> bool:
        try:
            self.pipe.send_bytes(name.encode())
            self.pipe.send_bytes(encode(task))
        except OSError:
            return False
        return True

    def receive(self) -> Reply | None:
        try:
            message = decode(self.pipe.recv_bytes())
        except (EOFError, OSError, MessageError):
            return None
        return None if isinstance(message, Task) else message

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _work(pipe: Connection, clients: list[Client], directory: Path | None, modules: list[str]) -> None:
    """A worker process: one task at a time until the pipe closes; it does not outlive its parent."""
    _prepare(modules)
    by_name, stays = {c.name: c for c in clients}, dict[str, Site]()
    while True:
        try:
            name, task = pipe.recv_bytes().decode(), decode(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        if isinstance(task, Task) and masked(task):  # the secrets of an attempt live in memory only
            site = stays.setdefault(name, open_site(by_name[name], directory))
            pipe.send_bytes(_encoded(site.perform(task)))
        elif isinstance(task, Task):  # a site's state lies on disk: another worker may have served it last
            pipe.send_bytes(_encoded(open_site(by_name[name], directory).perform(task)))


def _prepare(modules: list[str]) -> None:
    """What a worker process does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    for module in modules:
        with suppress(ImportError):  # if it is the one in use, building it will say so
            import_module(module)


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _encoded(reply: Reply) -> bytes:
    try:
        return encode(reply)
    except MessageError as error:
        return encode(Failure(reply.client, reply.round, "header", str(error), reply.run))
