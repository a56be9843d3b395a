"""A site's ClientApp: it relays a task to the resident worker, or runs the client itself.

The node's own config says which site it is: `site`, the path of its `site.toml`, and `worker`, the socket of the
resident worker if there is one.
"""

import logging
from pathlib import Path
from time import monotonic

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from polypfed.backends.flower.pairs import pack_replies, unpack_tasks
from polypfed.backends.flower.watch import cut_off
from polypfed.backends.local import masked, open_site
from polypfed.backends.resident import ask
from polypfed.backends.site_file import Later, SiteFile
from polypfed.core.errors import ConfigError, PolypfedError
from polypfed.core.messages import Failure, Reply, Task

log = logging.getLogger(__name__)
app = ClientApp()


@app.train()
def fit(message: Message, context: Context) -> Message:
    """Answer a task of kind "fit" or "step"."""
    return respond(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer a task of kind "evaluate"."""
    return respond(message, context)


def respond(message: Message, context: Context) -> Message:
    """The replies to a message's tasks, whatever goes wrong at this site.

    Raises:
        MessageError: the message is not a task.
        ConfigError: this node's config names no site.
    """
    path = context.node_config.get("site")
    if not isinstance(path, str):
        raise ConfigError("site is missing", where="--node-config", remedy="Start the node with `polypfed site run`")
    site = SiteFile.load(path)
    tasks, asked, deadline = unpack_tasks(message.content)
    end, worker = monotonic() + deadline, context.node_config.get("worker")
    replies = [_reply(site, task, asked, max(0.0, end - monotonic()), worker) for task in tasks]
    return Message(pack_replies(replies), reply_to=message)


def _reply(site: SiteFile, task: Task, asked: str, deadline: float, worker: object) -> Reply:
    if asked != site.name:
        detail = f"the server knows this node's key as {asked!r}, its own {site.path.name} says {site.name!r}"
        log.error("%s: refused: %s", site.name, detail)
        return Failure(site.name, task.round, "unknown-client", detail, task.run)
    if worker:
        return ask(Path(str(worker)), site.name, task, deadline)
    if masked(task):  # Flower starts a process per message, and a site's secrets must outlive one
        detail = "masked rounds need the resident worker: start the site without --no-worker"
        return Failure(site.name, task.round, "client", detail, task.run)
    try:
        with cut_off(deadline):
            return open_site(Later(site), site.state).perform(task)
    except PolypfedError as error:
        return Failure(site.name, task.round, "client", str(error), task.run)
