"""What runs in an actor of Flower's simulation engine."""

from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import ray
from flwr.app import Context, Message

from polypfed.backends.flower.records import pack_reply, unpack_task
from polypfed.backends.flower.watch import cut_off
from polypfed.backends.local import masked, open_site
from polypfed.clients.base import Client
from polypfed.clients.site import Site


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
        opened = _kept if masked(task) else _site
        reply = opened(hosted, directory, name).perform(task)
    return Message(pack_reply(reply), reply_to=message)


def _site(hosted: Any, directory: str, name: str) -> Site:
    return open_site(_clients(hosted)[name], Path(directory))


_kept = lru_cache(maxsize=None)(_site)  # the secrets of an attempt under masks live in memory only


@lru_cache(maxsize=1)
def _clients(hosted: Any) -> dict[str, Client]:
    """The clients by name; they stay in the actor, with the model they have loaded."""
    clients, modules = ray.get(hosted)
    for module in modules:
        with suppress(ImportError):  # if it is the one in use, building it will say so
            import_module(module)
    return {c.name: c for c in clients}
