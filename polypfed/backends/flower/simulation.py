"""Flower: the clients of a federation in Flower's simulation engine (Ray actors) on this machine or a Ray cluster.

Flower calls a ServerApp; our round engine calls a backend. They meet thus: the engine stays in the caller's thread,
Flower's simulation runs in another, and its ServerApp only hands out the Grid and waits until the run is over.
"""

import logging
import os
import queue
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from polypfed.backends.flower.actor import perform
from polypfed.backends.flower.grid import OverGrid
from polypfed.backends.local import masked
from polypfed.clients.base import Client
from polypfed.core.errors import BackendError, ConfigError
from polypfed.core.messages import Reply, Task, one_line
from polypfed.core.settings import positive, whole
from polypfed.strategies.registry import Registry

_START = 120.0  # seconds until the engine must be up
_STOP = 60.0
_ONE_AT_A_TIME = threading.Lock()  # Flower keeps the run's identity in globals of the process


class Flower:
    """Runs clients in Flower's simulation engine.

    Any node may serve any site: a task names its site, and what a site keeps lies on disk, so names are stable though
    Flower's node ids are random. The results are the same bits as those of `Local`.

    Args:
        workers: actors, each a process that serves one site at a time; None is one per core. Masked rounds run in one,
            for a site's secrets stay in the memory of the process that drew them.
        cpus: cores that Ray reserves per actor. gpus: the same, and may be a fraction.
        init_args: more arguments of `ray.init`, such as `address` of a cluster.

    Raises:
        ConfigError: workers or cpus is not at least 1.
    """

    def __init__(
        self, workers: int | None = None, cpus: int = 1, gpus: float = 0.0, init_args: Mapping[str, Any] | None = None
    ) -> None:
        if workers is not None:
            whole("workers", workers, 1)
        whole("cpus", cpus, 1)
        if gpus:
            positive(gpus=gpus)
        self.workers, self.cpus, self.gpus, self.init_args = workers, cpus, gpus, dict(init_args or {})
        self._clients: Sequence[Client] = ()
        self._directory: Path | None = None
        self._running: _Running | None = None

    @property
    def clients(self) -> Sequence[str]:
        """The names of the hosted clients, sorted."""
        return sorted(c.name for c in self._clients)

    def host(self, clients: Sequence[Client], directory: Path | None) -> None:
        """Take these clients; the engine starts at the first exchange."""
        self.close()
        self._clients, self._directory = list(clients), directory.absolute() if directory else None

    def close(self) -> None:
        """End the engine and its actors."""
        if self._running is not None:
            self._running.stop()
        self._running, self._clients = None, ()

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        """Replies in order of arrival.

        Raises:
            BackendError: the engine does not start, or has ended.
            ConfigError: the clients cannot be sent to an actor, another simulation runs in this process, or rounds
                are masked on a cluster.
        """
        if self._running is None:
            self._running = _Running(self._clients, self._directory, self._resources(), self._init_args(tasks.values()))
        yield from self._running.backend.exchange(tasks, deadline)

    def _resources(self) -> dict[str, float]:
        # max_restarts: an actor that a client has killed comes back; Flower would go on using the dead one.
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_restarts": -1}

    def _init_args(self, tasks: Iterable[Task]) -> dict[str, Any]:
        workers = self.workers
        if any(masked(task) for task in tasks):
            if "address" in self.init_args:
                raise ConfigError(
                    "sends a site's messages to any actor, and masks need the same one", where="backend",
                    remedy="Run masked rounds without address, or in a deployment",
                )  # fmt: skip
            workers = 1
        own: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        if workers is not None:
            own["num_cpus"] = workers * self.cpus
        path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
        own["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}  # where the clients' modules are found
        return own | self.init_args


class _Running:
    """One simulation under way."""

    def __init__(
        self, clients: Sequence[Client], directory: Path | None, resources: dict[str, float], init: dict[str, Any]
    ) -> None:
        if not _ONE_AT_A_TIME.acquire(blocking=False):
            raise ConfigError("a simulation runs in this process already", where="backend", remedy="End it first")
        self._scratch = tempfile.TemporaryDirectory(prefix="polypfed-")
        self._over, self._grid = threading.Event(), queue.SimpleQueue[Grid | BaseException]()
        try:
            handler = self._handler(clients, directory, init)
            names = sorted(c.name for c in clients)
            settings = {"client_resources": resources, "init_args": {}}
            self._thread = threading.Thread(target=self._run, args=(handler, len(names), settings), daemon=True)
            self._thread.start()
            grid = self._wait()
            nodes = dict(zip(names, sorted(grid.get_node_ids()), strict=True))
        except BaseException:
            self.stop()
            raise
        marks = Path(self._scratch.name)
        own = "address" not in init
        unseen = (lambda message: not (marks / message).exists()) if own else (lambda message: False)
        self.backend = OverGrid(grid, names, lambda: nodes, 0.02, unseen)

    def _handler(self, clients: Sequence[Client], directory: Path | None, init: dict[str, Any]) -> Any:
        """What an actor runs; the clients are put into Ray's store once, not sent with every message."""
        ray.init(**init)
        try:
            hosted = ray.put((list(clients), Registry.modules()))
        except TypeError as error:
            raise ConfigError(
                f"the clients cannot be sent to an actor ({one_line(error.__cause__ or error)})",
                where="backend",
                remedy="Open files, models and locks when they are first used",
            ) from error
        return partial(perform, hosted, str(directory or self._scratch.name), self._scratch.name)

    def _run(self, handler: Any, count: int, settings: dict[str, Any]) -> None:
        server, client = ServerApp(), ClientApp()
        client.train()(handler)
        client.evaluate()(handler)

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            while len(list(grid.get_node_ids())) < count and not self._over.wait(0.05):
                continue
            self._grid.put(grid)
            self._over.wait()

        logging.getLogger("flwr").setLevel(logging.ERROR)  # its own account of every message
        try:
            run_simulation(server, client, num_supernodes=count, backend_config=settings)
            self._grid.put(RuntimeError("it ended"))
        except BaseException as error:  # noqa: BLE001 - Flower ends the process by SystemExit where it cannot go on
            self._grid.put(error)

    def _wait(self) -> Grid:
        try:
            found = self._grid.get(timeout=_START)
        except queue.Empty:
            found = TimeoutError(f"not up after {_START:.0f} s")
        if isinstance(found, BaseException):
            raise BackendError(f"Flower's simulation engine does not start ({found})", where="backend") from found
        return found

    def stop(self) -> None:
        """End everything; an actor that is still busy sees its scratch folder vanish and ends too."""
        self._over.set()
        self._scratch.cleanup()
        if (thread := getattr(self, "_thread", None)) is not None:
            thread.join(_STOP)
        ray.shutdown()
        _ONE_AT_A_TIME.release()
