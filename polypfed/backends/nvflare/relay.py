"""The server's end of a simulation: hands on what the engine, in the caller's process, wants exchanged."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Client as connect
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal

from polypfed.backends.nvflare.exchange import ExchangeController
from polypfed.backends.nvflare.parcel import receive, send
from polypfed.core.messages import Task, decode, encode


class RelayController(ExchangeController):
    """Takes batches of tasks from a socket and sends the replies back.

    Args:
        socket: where the process that runs the engine listens.
        shared: see ExchangeController.
    """

    def __init__(self, socket: str, shared: bool) -> None:
        super().__init__(shared)
        self.socket, self.shared = socket, shared

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Serve until the other end goes, and end this process then: what it holds is of no further use."""
        try:
            with connect(self.socket, "AF_UNIX") as pipe:
                pipe.send_bytes(b"controller")
                while True:
                    head = json.loads(pipe.recv_bytes())
                    tasks = dict(_tasks(pipe, head["sites"]))
                    for reply in self.exchange(tasks, head["deadline"], head["layout"], fl_ctx, abort_signal):
                        pipe.send_bytes(head["number"].to_bytes(8))
                        send(pipe, encode(reply))
        except (EOFError, OSError):
            os._exit(0)


def _tasks(pipe: Any, sites: list[str]) -> Iterator[tuple[str, Task]]:
    vectors: Any = {}
    for site in sites:
        task = decode(receive(pipe).data)
        assert isinstance(task, Task)
        vectors = task.vectors or vectors  # none: those of the site before
        yield site, replace(task, vectors=vectors)
