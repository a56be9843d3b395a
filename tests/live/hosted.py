"""Several federations one after the other over clients that an engine hosts once: its start takes longer than a run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from polypfed import History, Task
from polypfed.clients.base import agreed
from polypfed.core.messages import Reply
from polypfed.federation.protocol import Backend
from tests import hostile
from tests.problems import sites


class Hosted:
    """The engine without `host` and `close`, so that a run leaves it as it is.

    Args:
        keys: the server's.
    """

    def __init__(self, engine: Backend, keys: Path) -> None:
        self.engine, self.keys = engine, keys

    @property
    def clients(self) -> Sequence[str]:
        return self.engine.clients

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        return self.engine.exchange(tasks, deadline)

    def run(self, strategy: str, folder: Path) -> History:
        """All rounds of the matrix."""
        fed = hostile.federation(strategy, initial=agreed(sites()), keys=self.keys)
        return fed.run(hostile.ROUNDS, self, folder)
