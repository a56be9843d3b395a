"""A backend that runs the sites here, changes what arrives as a check wants it, and remembers what it carried."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polypfed.backends.local import Local
from polypfed.clients.base import Client
from polypfed.core.messages import Reply, Task

Change = Callable[[Reply], Reply]


def unchanged(reply: Reply) -> Reply:
    """The reply itself."""
    return reply


class Through:
    """A backend that hosts its clients by `inner` and has an `exchange` of its own; to derive from."""

    inner: Local

    @property
    def clients(self) -> Sequence[str]:
        """The names of the hosted clients, sorted."""
        return self.inner.clients

    def host(self, clients: Sequence[Client], directory: Path | None) -> None:
        """Take these clients."""
        self.inner.host(clients, directory)

    def close(self) -> None:
        """Let go of them."""
        self.inner.close()


@dataclass
class Carried(Through):
    """Local with the replies to fits in reverse order of name if `backwards`, each changed by `change`."""

    change: Change = unchanged
    backwards: bool = False
    tasks: list[tuple[str, Task]] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    inner: Local = field(default_factory=Local)

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        """As Local, then as the settings say."""
        self.tasks += tasks.items()
        found = list(self.inner.exchange(tasks, deadline))
        for reply in reversed(found) if self.backwards else found:
            arrived = self.change(reply) if tasks[reply.client].kind == "fit" else reply
            self.replies.append(arrived)
            yield arrived
