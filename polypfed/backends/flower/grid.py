"""The round engine's exchange over a Flower Grid: push, pull until the deadline, answer for every site."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Protocol

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from polypfed.backends.flower.records import arrays, pack_task, unpack_reply
from polypfed.core.errors import MessageError
from polypfed.core.messages import Failure, Reply, Task, one_line
from polypfed.core.model import Vector

log = logging.getLogger(__name__)
_KINDS = {"fit": "train", "step": "train", "evaluate": "evaluate"}
_LONGEST = 30 * 24 * 3600.0  # seconds; Flower knows no endless message
_SLACK = 5.0  # seconds for which a message outlives its deadline, so that it ends by ours and not by Flower's clock
_REASONS = {1: "client", 2: "crashed", 3: "lost", 4: "lost", 5: "absent", 6: "client", 7: "client", 8: "lost"}

Nodes = Callable[[], Mapping[str, int]]


class Codec(Protocol):
    """How a task and its reply look as Flower's records."""

    def arrays(self, vectors: Mapping[str, Vector]) -> ArrayRecord:
        """What sites that get equal vectors share."""

    def pack(self, task: Task, site: str, deadline: float, carried: ArrayRecord) -> RecordDict:
        """A message for `site`."""

    def unpack(self, content: RecordDict, site: str, task: Task) -> Reply:
        """What `site` answered; a Failure if it is no answer."""


class Native:
    """Our own sites: see `records`."""

    def arrays(self, vectors: Mapping[str, Vector]) -> ArrayRecord:
        """One flat array per vector."""
        return arrays(vectors)

    def pack(self, task: Task, site: str, deadline: float, carried: ArrayRecord) -> RecordDict:
        """See `pack_task`."""
        return pack_task(task, site, deadline, carried)

    def unpack(self, content: RecordDict, site: str, task: Task) -> Reply:
        """See `unpack_reply`."""
        return unpack_reply(content, site, task)


class OverGrid:
    """A backend over a Grid that somebody else has opened.

    Args:
        grid: Flower's.
        sites: the site names.
        nodes: which node serves which site now; a site without a node is absent.
        poll: seconds between two looks for replies.
        unseen: message id -> True if its node certainly never began it, so that it may be sent again.
        codec: how messages look; our own sites' way, or that of a ClientApp that knows nothing of polypfed.
        apart: take each reply in a thread of its own. Over HTTP, Flower lists a reply before it has come in whole, and
            the call that takes it waits for the rest, for minutes if a connection broke; nobody else's reply may wait
            with it.
    """

    def __init__(
        self,
        grid: Grid,
        sites: Sequence[str],
        nodes: Nodes,
        poll: float = 0.2,
        unseen: Callable[[str], bool] = lambda message: False,
        codec: Codec | None = None,
        apart: bool = False,
    ) -> None:
        self.grid, self.poll, self.codec, self.apart = grid, poll, codec or Native(), apart
        self._sites, self._nodes, self._unseen = sorted(sites), nodes, unseen

    @property
    def clients(self) -> Sequence[str]:
        """The site names, sorted."""
        return list(self._sites)

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        """Replies in order of arrival; what has not come when the deadline passes is a Failure."""
        deadline = min(deadline, _LONGEST)
        end = monotonic() + deadline
        nodes = self._nodes()
        for name in sorted(set(tasks) - set(nodes)):
            yield _failure(name, tasks[name], "absent", "no node of this site is online")
        waiting = self._push({n: t for n, t in sorted(tasks.items()) if n in nodes}, nodes, deadline)
        for name in sorted((set(tasks) & set(nodes)) - set(waiting.values())):
            yield _failure(name, tasks[name], "absent", "Flower took no message for this site")
        for message, reply in self._arrivals(waiting, end):
            name = waiting.pop(message, "")
            if not name:
                continue
            if reply.has_error() and self._unseen(message):
                time.sleep(min(self.poll, max(0.0, end - monotonic())))
                resent = self._push({name: tasks[name]}, nodes, end - monotonic())
                waiting |= resent
                if resent:
                    continue
            yield self._read(name, tasks[name], reply)
        for name in waiting.values():
            yield _failure(name, tasks[name], "deadline", "no answer within the deadline")

    def _arrivals(self, waiting: Mapping[str, str], end: float) -> Iterator[tuple[str, Message]]:
        """Replies, by the message they answer, until none is waited for or the time is over."""
        if self.apart:
            yield from self._apart(waiting, end)
            return
        while waiting and monotonic() < end:
            found = list(self.grid.pull_messages(list(waiting)))
            for reply in found:
                yield str(reply.metadata.reply_to_message_id), reply  # not the node: Flower's errors carry another
            if not found:
                time.sleep(min(self.poll, max(0.0, end - monotonic())))

    def _apart(self, waiting: Mapping[str, str], end: float) -> Iterator[tuple[str, Message]]:
        """The same, by a thread for each; together they ask as often as one thread would ask for five sites."""
        arrived, over = SimpleQueue[tuple[str, Message] | Exception](), threading.Event()
        pause = self.poll * max(1.0, len(waiting) / 5)

        def take(message: str) -> None:
            try:
                while not over.is_set():
                    for reply in self.grid.pull_messages([message]):
                        arrived.put((message, reply))
                        return
                    over.wait(pause)
            except Exception as error:  # noqa: BLE001 - raised below, where the exchange is
                arrived.put(error)

        for message in waiting:
            threading.Thread(target=take, args=(message,), daemon=True).start()
        try:
            while waiting:
                found = arrived.get(timeout=max(0.0, end - monotonic()))
                if isinstance(found, Exception):
                    raise found
                yield found
        except Empty:
            return
        finally:
            over.set()

    def _push(self, tasks: Mapping[str, Task], nodes: Mapping[str, int], deadline: float) -> dict[str, str]:
        """Message id -> site of what was taken. Equal vectors are encoded once."""
        encoded: dict[int, ArrayRecord] = {}
        messages: list[tuple[str, Message]] = []
        for name, task in tasks.items():
            if id(task.vectors) not in encoded:
                encoded[id(task.vectors)] = self.codec.arrays(task.vectors)
            messages.append((name, self._message(name, task, nodes[name], deadline, encoded[id(task.vectors)])))
        taken = set(self.grid.push_messages([message for _, message in messages]))
        return {m.metadata.message_id: name for name, m in messages if m.metadata.message_id in taken}

    def _message(self, name: str, task: Task, node: int, deadline: float, carried: ArrayRecord) -> Message:
        content, kind = self.codec.pack(task, name, deadline, carried), _KINDS[task.kind]
        return Message(content, node, kind, group_id=str(task.round), ttl=deadline + _SLACK)

    def _read(self, name: str, task: Task, message: Message) -> Reply:
        if message.has_error():
            reason = _REASONS.get(message.error.code, "lost")
            return _failure(name, task, reason, one_line(message.error.reason))
        try:
            reply = self.codec.unpack(message.content, name, task)
        except (MessageError, ValueError, TypeError, KeyError) as error:
            return _failure(name, task, "header", one_line(error))
        if isinstance(reply, Failure):
            log.warning("site %s, round %d: %s: %s", name, task.round, reply.reason, one_line(reply.detail))
        return reply


def _failure(name: str, task: Task, reason: str, detail: Any) -> Failure:
    log.warning("site %s, round %d: %s: %s", name, task.round, reason, detail)
    return Failure(name, task.round, reason, str(detail), task.run)
