"""What the round engine asks of whatever carries its messages, and what it tells those who watch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from polypfed.clients.base import Client
from polypfed.core.history import Row
from polypfed.core.messages import Reply, Task


class Backend(Protocol):
    """What carries tasks to sites and replies back.

    Attributes:
        clients: stable site names, sorted.
    """

    @property
    def clients(self) -> Sequence[str]:
        """Names of the sites, sorted."""

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        """Deliver one task per site; yield replies as they come, within `deadline` seconds.

        Every site asked is answered for: what does not come is a Failure. A reply's vectors are valid until the next
        reply is taken from the iterator. Nothing raises because of one site.
        """


@runtime_checkable
class Host(Protocol):
    """A backend that runs the clients itself."""

    def host(self, clients: Sequence[Client], directory: Path | None) -> None:
        """Take these clients; their state is kept below `directory`/sites."""

    def close(self) -> None:
        """Let go of the clients; end worker processes."""


@dataclass(frozen=True)
class Event:
    """Something happened: "round" begins, a "fit" or "evaluate" reply came, a round was "abandoned" or "saved".

    "resumed" comes first where a run goes on, with all that it has recorded before.

    Attributes:
        rows: of the history: those that are new, once they are safe on the disk ("saved", "resumed").
        run: which run it is of, as its checkpoint knows it.
    """

    kind: Literal["resumed", "round", "fit", "evaluate", "abandoned", "saved"]
    round: int
    site: str = ""
    reply: Reply | None = None
    rows: Sequence[Row] = ()
    run: str = ""


Listener = Callable[[Event], None]
