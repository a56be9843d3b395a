"""NVFlare: the clients of a federation behind NVFlare's simulator on this machine.

The simulator runs in processes of its own: a server, and one per site. The engine stays in the caller's process, and
so do, in worker processes below it, the clients; a Unix socket joins both to the simulator. What travels between
engine and clients takes NVFlare's whole way: its wire format, task queue, filters and site processes.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from polypfed.backends.nvflare.parcel import receive, send
from polypfed.backends.nvflare.pool import Pool
from polypfed.clients.base import Client, HasInitial, agreed
from polypfed.core.errors import BackendError
from polypfed.core.extras import require
from polypfed.core.messages import Failure, Reply, Task, decode, encode
from polypfed.core.settings import whole
from polypfed.strategies.registry import Registry

_START = 120.0  # seconds without a sign of life after which the simulator does not start
_GRACE = 5.0  # seconds that the engine waits beyond the deadline: a client that was cut is answered for at once
_LOOK = 0.1
_CENSUS = 0.5  # seconds between two looks at the processes of a simulator that starts
_ROOM = "polypfed.backends.nvflare"


class NVFlare:
    """Runs clients in NVFlare's simulator. The results are the same bits as those of `Local`.

    Args:
        threads: sites that run at once; None is all. With fewer than there are sites the simulator starts a new
            process for every task, which is slow; nothing is lost, since clients live elsewhere and keep their state
            on disk.
        workers: clients that train at once, each in a process of its own; None is one per core, at most `threads`.
        filters: NVFlare filters on what sites send, as in a job: `{"path": "module.Class", "args": {...}}`.
        workspace: where the simulator's own folder is kept; None deletes it.

    Raises:
        ConfigError: threads or workers is not at least 1.
    """

    def __init__(
        self,
        threads: int | None = None,
        workers: int | None = None,
        filters: Sequence[Mapping[str, Any]] = (),
        workspace: str | Path | None = None,
    ) -> None:
        for name, value in (("threads", threads), ("workers", workers)):
            if value is not None:
                whole(name, value, 1)
        self.threads, self.workers, self.filters = threads, workers, [dict(f) for f in filters]
        self.workspace = Path(workspace).absolute() if workspace is not None else None
        self._clients: Sequence[Client] = ()
        self._directory: Path | None = None
        self._running: _Running | None = None
        self._pool: Pool | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._layouts = dict[str, list[tuple[str, int]]]()

    @property
    def clients(self) -> Sequence[str]:
        """The names of the hosted clients, sorted."""
        return sorted(c.name for c in self._clients)

    def host(self, clients: Sequence[Client], directory: Path | None) -> None:
        """Take these clients; the simulator starts at the first exchange.

        Raises:
            MissingExtraError: NVFlare is not installed.
        """
        self.close()
        if find_spec("nvflare") is None:
            require("nvflare", extra="nvflare")
        self._clients, self._directory = list(clients), directory.absolute() if directory else None

    def close(self) -> None:
        """End the simulator and the worker processes."""
        if self._running is not None:
            self._running.stop()
        if self._pool is not None:
            self._pool.close()
        if self._scratch is not None:
            self._scratch.cleanup()
        self._running, self._pool, self._scratch, self._clients = None, None, None, ()
        self._layouts.clear()

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        """Replies in order of arrival. A simulator that has lost a process is started anew.

        Raises:
            BackendError: the simulator does not start.
            ConfigError: the clients cannot be sent to a worker process.
        """
        if self._running is not None and self._running.damaged:
            self._running.stop()
            self._running = None
        if self._running is None:
            self._running = self._start()
        yield from self._running.exchange(tasks, deadline, self._layout(tasks))

    def _start(self) -> "_Running":
        """A simulator; the clients' processes and their state outlive it."""
        names = list(self.clients)
        threads = min(self.threads or len(names), len(names))
        if self._pool is None:
            if self._directory is None:
                self._scratch = tempfile.TemporaryDirectory(prefix="polypfed-")
            place = self._directory or Path(str(self._scratch and self._scratch.name))
            self._pool = Pool(self._clients, place, min(self.workers or os.cpu_count() or 1, threads))
        try:
            return _Running(names, threads, self._pool, self.filters, self.workspace)
        except _SiteLostError:  # on a busy machine NVFlare gives two sites one port, or gives up on a connection
            return _Running(names, threads, self._pool, self.filters, self.workspace)

    def _layout(self, tasks: Mapping[str, Task]) -> list[tuple[str, int]]:
        """Names and sizes of the layers that travel, for filters that go by name; none if no client tells."""
        description = next((t.config["strategy"] for t in tasks.values() if "strategy" in t.config), None)
        key = json.dumps(description, sort_keys=True, default=str)
        if key not in self._layouts:
            told = [c for c in self._clients if isinstance(c, HasInitial)][:1]
            spec = agreed(told)[0] if told else None
            if spec is not None and description is not None:
                spec = Registry.build(description).wire(spec)
            self._layouts[key] = [(p.name, p.stop - p.start) for p in spec.parts] if spec else []
        return self._layouts[key]


class _SiteLostError(BackendError):
    """A site's process ended or fell silent before it could be given work, and NVFlare never says so."""


class _Running:
    """One simulator under way."""

    def __init__(self, names: list[str], threads: int, pool: Pool, filters: list[Any], workspace: Path | None) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="polypfed-")
        self._names, self._pool, self._shared = names, pool, threads < len(names)
        place = Path(self._scratch.name)
        self._lost, self._present = set[str](), set[str]()
        self._tasks: Mapping[str, Task] = {}
        self._end, self._number = 0.0, 0
        self._controller: Connection | None = None
        self._pipes: list[Connection] = []
        self._arrival = threading.Event()
        self._listener = Listener(str(place / "socket"), "AF_UNIX", backlog=2 * len(self._names))
        threading.Thread(target=self._accept, daemon=True).start()
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = self._launch(place, workspace or place / "workspace", filters, threads)
            self._pool.warm()
            self._wait()
        except BaseException:
            self.stop()
            raise

    @property
    def damaged(self) -> bool:
        """True if a process of the simulator has ended."""
        return self._process is None or self._process.poll() is not None or bool(self._lost)

    def _launch(self, place: Path, workspace: Path, filters: list[Any], threads: int) -> subprocess.Popen[bytes]:
        job = place / "polypfed"
        write_job(job, str(place / "socket"), self._names, filters, self._shared)
        command = [sys.executable, "-m", f"{_ROOM}.simulate", str(job), str(workspace), ",".join(self._names)]
        path = os.pathsep.join([p for p in sys.path if p] + [os.environ.get("PYTHONPATH", "")])
        self._log = place / "simulator.log"
        with open(self._log, "wb") as log:
            return subprocess.Popen(
                [*command, str(threads)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": path.rstrip(os.pathsep)},
                start_new_session=True,
                cwd=place,
            )

    def _wait(self) -> None:
        """Until the server is there, and every site that has a process for the whole time.

        Raises:
            BackendError: the simulator ended, or nothing came for _START seconds.
        """
        assert self._process is not None
        end, begun = monotonic() + _START, set[str]()
        while not self._complete():
            if self._arrival.wait(_CENSUS):
                self._arrival.clear()
                end = monotonic() + _START
            alive = _with_process(self._process.pid)
            gone, begun = begun - alive - self._present, begun | alive
            if self._process.poll() is not None or monotonic() > end or (gone and not self._shared):
                lines = self._log.read_text(errors="replace").strip().splitlines()[-3:]
                kind = _SiteLostError if self._process.poll() is None else BackendError
                raise kind(f"NVFlare's simulator does not start ({' / '.join(lines)})", where="backend")

    def _complete(self) -> bool:
        return self._controller is not None and (self._shared or self._present.issuperset(self._names))

    def _accept(self) -> None:
        while True:
            try:
                pipe = self._listener.accept()
                who = pipe.recv_bytes(1000).decode()
            except (OSError, EOFError):
                return
            self._pipes.append(pipe)
            if who == "controller":
                self._controller = pipe
            else:
                name = who.partition(" ")[2]
                self._present.add(name)
                threading.Thread(target=self._serve, args=(pipe, name), daemon=True).start()
            self._arrival.set()

    def _serve(self, pipe: Connection, name: str) -> None:
        """Do what the site's process asks for, until it ends."""
        with suppress(EOFError, OSError, KeyError):
            while True:
                answer = self._pool.forward(name, receive(pipe), self._tasks[name], self._end)
                send(pipe, encode(answer) if isinstance(answer, Failure) else answer)
        pipe.close()
        self._pipes.remove(pipe)
        if not self._shared:  # else a process ends with every task
            self._lost.add(name)

    def exchange(self, tasks: Mapping[str, Task], deadline: float, layout: list[tuple[str, int]]) -> Iterator[Reply]:
        """See `Backend.exchange`."""
        waiting, self._tasks, self._end = set(tasks), tasks, monotonic() + deadline
        try:
            for reply in self._replies(tasks, waiting, deadline, layout):
                if reply.client in waiting:
                    waiting.discard(reply.client)
                    yield reply
        except (EOFError, OSError):
            self._lost |= waiting
        late = monotonic() >= self._end
        lost = self._lost | (set() if late else waiting)
        self._lost |= waiting  # the controller is not through with them: the next exchange needs a new simulator
        for name in sorted(waiting):
            reason, detail = ("lost", "its process ended") if name in lost else ("deadline", "no answer in time")
            yield Failure(name, tasks[name].round, reason, detail, tasks[name].run)

    def _replies(
        self, tasks: Mapping[str, Task], waiting: set[str], deadline: float, layout: list[tuple[str, int]]
    ) -> Iterator[Reply]:
        pipe, self._number = self._controller, self._number + 1
        assert pipe is not None
        head = {"number": self._number, "deadline": deadline + _GRACE, "sites": sorted(tasks), "layout": layout}
        pipe.send_bytes(json.dumps(head).encode())
        last: Any = None
        for name in sorted(tasks):  # mostly all sites get the same vectors: they are sent once
            task = tasks[name]
            send(pipe, encode(replace(task, vectors={}) if task.vectors is last else task))
            last = task.vectors
        end = monotonic() + deadline + 2 * _GRACE
        while waiting - self._lost and (left := end - monotonic()) > 0:
            if pipe.poll(min(_LOOK, left)):
                number, parcel = int.from_bytes(pipe.recv_bytes(8)), receive(pipe)
                if number == self._number and not isinstance(reply := decode(parcel.data), Task):
                    yield reply

    def stop(self) -> None:
        """End everything. A site process that came too late to be seen here ends when its socket closes."""
        pids = family(self._process.pid) if self._process is not None else []
        with suppress(OSError):
            self._listener.close()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pipe in list(self._pipes):  # their threads take them off the list
            with suppress(OSError):
                _hang_up(pipe)
        if self._controller is not None:
            self._controller.close()
        if self._process is not None:
            self._process.wait()
        _cleanup(self._scratch)


def write_job(folder: Path, socket: str, names: Sequence[str], filters: Sequence[Any], shared: bool) -> None:
    """The job's configuration, as NVFlare reads it."""
    controller = {
        "id": "rounds",
        "path": f"{_ROOM}.relay.RelayController",
        "args": {"socket": socket, "shared": shared},
    }
    executor = {"path": f"{_ROOM}.executor.PolypExecutor", "args": {"socket": socket}}
    server = {"server": {"heart_beat_timeout": 600, "task_request_interval": 0.05}, "workflows": [controller]}
    client: dict[str, Any] = {"executors": [{"tasks": ["*"], "executor": executor}], "components": []}
    client["task_result_filters"] = [{"tasks": ["fit"], "filters": list(filters)}] if filters else []
    meta = {"name": folder.name, "resource_spec": {}, "min_clients": len(names), "deploy_map": {"app": ["@ALL"]}}
    config = folder / "app" / "config"
    config.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps(meta))
    (config / "config_fed_server.json").write_text(json.dumps({"format_version": 2, "components": [], **server}))
    (config / "config_fed_client.json").write_text(json.dumps({"format_version": 2, **client}))


def family(pid: int) -> list[int]:
    """The process and all that descend from it, itself first."""
    children = dict[int, list[int]]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def _with_process(pid: int) -> set[str]:
    """The sites that have a process of their own below this one."""
    found = set[str]()
    for child in family(pid):
        with suppress(OSError, ValueError, IndexError):
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            found.add(words[words.index("--client") + 1])
    return found


def _hang_up(pipe: Connection) -> None:
    """Both ends hear of it at once. Closing alone is not heard while a thread still waits at this end."""
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


def _cleanup(scratch: "tempfile.TemporaryDirectory[str]") -> None:
    for _ in range(20):  # a process that is just ending may still write
        with suppress(OSError):
            scratch.cleanup()
            return
        sleep(0.1)
