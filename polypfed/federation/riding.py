"""Evaluations that ride: where a message costs seconds, the scores of a round come with the answers of the next.

The sites see the same tasks in the same order, so models and scores have the same bits; their rows in the history come
later. Until then the checkpoint says that its model has not been scored.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from polypfed.core.messages import Reply, Task
from polypfed.federation.protocol import Backend


@runtime_checkable
class Combines(Backend, Protocol):
    """A backend that can carry two tasks for a site in one message."""

    def exchange_both(
        self, first: Mapping[str, Task], main: Mapping[str, Task], deadline: float
    ) -> Iterator[tuple[Task, Reply]]:
        """Like `exchange`, with each reply the task that it answers; every site of `first` is in `main`."""


class Riding:
    """A backend whose evaluations wait for the next exchange, if that asks every site that they ask.

    Args:
        carrier: what carries both.
    """

    def __init__(self, carrier: Combines) -> None:
        self.carrier = carrier
        self._waiting: tuple[Mapping[str, Task], Callable[[Reply], None], Callable[[], None]] | None = None

    @property
    def clients(self) -> Sequence[str]:
        """Those of the carrier."""
        return self.carrier.clients

    def defer(self, tasks: Mapping[str, Task], take: Callable[[Reply], None], done: Callable[[], None]) -> None:
        """Exchange `tasks` with the next ones: `take` gets each reply, `done` is called at the end."""
        self._waiting = tasks, take, done

    def flush(self, deadline: float) -> bool:
        """Exchange what waits, now; False if nothing did."""
        if self._waiting is None:
            return False
        (tasks, take, done), self._waiting = self._waiting, None
        for reply in self.carrier.exchange(tasks, deadline):
            take(reply)
        done()
        return True

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        """See Backend."""
        if self._waiting is None or not set(self._waiting[0]) <= set(tasks):
            self.flush(deadline)
            yield from self.carrier.exchange(tasks, deadline)
            return
        (first, take, done), self._waiting = self._waiting, None
        for task, reply in self.carrier.exchange_both(first, tasks, deadline):
            if task is first.get(reply.client):
                take(reply)
            else:
                yield reply
        done()
