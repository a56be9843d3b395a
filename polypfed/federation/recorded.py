"""A run that is written down as it goes, and goes on where it was: what every command and server does with one."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from polypfed.core.history import History
from polypfed.core.journal import Journal
from polypfed.federation.api import Federation
from polypfed.federation.protocol import Backend, Event, Listener


def recorded(
    fed: Federation,
    rounds: int,
    backend: Backend,
    folder: Path,
    *listeners: Listener | None,
    resume: bool = True,
) -> History:
    """All rounds of `fed`, kept and journalled in `folder`; what it holds already is resumed.

    Args:
        listeners: told every Event after the journal. One that is a context manager is entered before the first
            event and left after the last; None is nobody.
        resume: False refuses a folder that holds a run.

    Raises:
        PolypfedError: see `Federation.run` and `Federation.resume`.
    """
    with ExitStack() as stack:
        tell = _each(stack, [Journal(folder, rounds), *filter(None, listeners)])
        if resume and (folder / "run.json").exists():
            return fed.resume(folder, rounds, backend, tell)
        return fed.run(rounds, backend, folder, tell)


def _each(stack: ExitStack, listeners: list[Listener]) -> Callable[[Event], None]:
    for listener in listeners:
        if isinstance(listener, AbstractContextManager):
            stack.enter_context(listener)

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell
