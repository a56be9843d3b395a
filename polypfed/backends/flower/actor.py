"""What runs in an actor of Flower's simulation engine."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any

import ray
from flwr.app import Context, Message

from polypfed.backends.flower.records import pack_reply, unpack_task
from polypfed.backends.local import open_site
from polypfed.clients.base import Client

_LOOK = 0.25  # seconds


def perform(hosted: Any, directory: str, alive: str, message: Message, context: Context) -> Message:
    """Answer one message for the site it names.

    Args:
        hosted: Ray's reference to the clients and to the modules that know their strategies.
        directory: the run's folder; a site's state lies on disk, for another actor may serve it next.
        alive: a folder that vanishes when the run is over; a mark in it says that this message was begun, for one that
            comes to an actor still restarting is answered with an error and may be sent again.
    """
    with suppress(OSError):  # the folder is on another machine, or gone
        (Path(alive) / message.metadata.message_id).touch()
    task, name, deadline = unpack_task(message.content)
    with cut_off(deadline, Path(alive)):
        reply = open_site(_clients(hosted)[name], Path(directory)).perform(task)
    return Message(pack_reply(reply), reply_to=message)


@lru_cache(maxsize=1)
def _clients(hosted: Any) -> dict[str, Client]:
    """The clients by name; they stay in the actor, with the model they have loaded."""
    clients, modules = ray.get(hosted)
    for module in modules:
        with suppress(ImportError):  # if it is the one in use, building it will say so
            import_module(module)
    return {c.name: c for c in clients}


@contextmanager
def cut_off(deadline: float, alive: Path | None = None) -> Iterator[None]:
    """End this process if the block is not left within `deadline` seconds, or once the folder `alive` is gone."""
    done, end = threading.Event(), monotonic() + deadline
    watched = alive if alive is not None and alive.exists() else None  # another machine does not have it

    def watch() -> None:
        while not done.wait(min(_LOOK, max(0.0, end - monotonic()))):
            if monotonic() >= end or (watched is not None and not watched.exists()):
                os._exit(70)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
