"""The one interface of all trackers, and the listener that looks after them."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self

from polypfed.core.history import Row
from polypfed.core.journal import Happening
from polypfed.core.messages import one_line

log = logging.getLogger(__name__)
Figures = dict[tuple[str, str, int], float]
"""(metric, site, round) -> value; site "" is the whole federation."""


class Tracker(Protocol):
    """Hands a run's figures to another program. All but `open` may raise whatever that program's library raises."""

    def open(self) -> None:
        """Reach the other program.

        Raises:
            PolypfedError: it cannot be reached, or its library is missing.
        """

    def tell(self, event: Happening) -> None:
        """Something happened; `event.rows` are the figures that are new."""

    def close(self, error: BaseException | None) -> None:
        """The run has ended, by `error` if there is one."""


class Tracking:
    """A listener for `Federation.run`, as a context manager: opens trackers, tells them everything, closes them.

    A tracker that cannot be opened stops the run before it begins. One that fails later is given up with a warning,
    and the run goes on: a dashboard is not worth a round.

    Args:
        trackers: told in this order.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from polypfed.track import JsonLog
        >>> from polypfed.federation import Event
        >>> file = Path(tempfile.mkdtemp()) / "run.log"
        >>> with Tracking(JsonLog(file)) as listen:
        ...     listen(Event("round", 1))
        >>> len(file.read_text().splitlines())
        2
    """

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = list(trackers)

    def __enter__(self) -> Self:
        chosen, self._trackers = self._trackers, []
        try:
            for tracker in chosen:
                tracker.open()
                self._trackers.append(tracker)
        except Exception as error:
            self.__exit__(None, error, None)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for tracker in self._trackers:
            _attempt(tracker.close, error)

    def __call__(self, event: Happening) -> None:
        """Tell every tracker that still works."""
        for tracker in list(self._trackers):
            if error := _attempt(tracker.tell, event):
                self._trackers.remove(tracker)
                _attempt(tracker.close, error)


def _attempt(act: Callable[[Any], None], what: object) -> Exception | None:
    """The error that it ends in, which is warned of."""
    try:
        act(what)
    except Exception as error:  # noqa: BLE001 - another program's library may raise anything
        log.warning("%s: %s; the run goes on without it", act.__qualname__, one_line(error) or type(error).__name__)
        return error
    return None


def figures(rows: Iterable[Row]) -> Figures:
    """The rows by what they are of; the last of a kind counts, as in the history."""
    return {(row["metric"], row["site"], row["round"]): row["value"] for row in rows}
