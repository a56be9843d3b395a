"""A run's journal: RUN/events.jsonl, a line for everything that happens, as it happens.

History and failures are written with each checkpoint, so that they fit it; the journal is for those who watch a round
under way. Nothing reads it to go on, and a journal that cannot be written does not stop a run.
"""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from polypfed.core.history import Row
from polypfed.core.messages import Failure, Reply, Update, one_line
from polypfed.core.model import nbytes

log = logging.getLogger(__name__)
FILE = "events.jsonl"


class Happening(Protocol):
    """What a listener is told; see `polypfed.federation.Event`."""

    @property
    def kind(self) -> str: ...
    @property
    def round(self) -> int: ...
    @property
    def site(self) -> str: ...
    @property
    def reply(self) -> Reply | None: ...
    @property
    def rows(self) -> Sequence[Row]: ...
    @property
    def run(self) -> str: ...


class Journal:
    """A listener that writes the journal. Use it as a context manager, so that it says how the run ended.

    Its first line, `begin`, is written with the first event: by then the run holds the lock of its folder.

    Args:
        folder: of the run.
        rounds: how many are planned.

    Examples:
        >>> import json, tempfile
        >>> from polypfed.federation import Event
        >>> folder = Path(tempfile.mkdtemp())
        >>> with Journal(folder, rounds=3) as listen:
        ...     listen(Event("round", 1))
        >>> [json.loads(line)["kind"] for line in (folder / FILE).read_text().splitlines()]
        ['begin', 'round', 'end']
    """

    def __init__(self, folder: str | Path, rounds: int) -> None:
        self._path, self._rounds = Path(folder) / FILE, rounds
        self._begun = self._broken = False

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._begun:
            words = "" if error is None else one_line(error) or type(error).__name__
            self._write("end", ok=error is None, detail=words)

    def __call__(self, event: Happening) -> None:
        """Write one event down."""
        if not self._begun:
            self._begun = True
            self._write("begin", rounds=self._rounds)
        self._write(event.kind, round=event.round, **_about(event))

    def _write(self, kind: str, **values: Any) -> None:
        if self._broken:
            return
        line = json.dumps({"time": round(time.time(), 3), "kind": kind, **values}) + "\n"
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            self._broken = True
            log.warning("%s: cannot be written (%s); the run goes on without its journal", self._path, error.strerror)


def _about(event: Happening) -> dict[str, Any]:
    reply = event.reply
    if not event.site or reply is None:
        return {}
    if isinstance(reply, Failure):
        return {"site": event.site, "ok": False, "reason": reply.reason, "detail": reply.detail}
    found: dict[str, Any] = {"site": event.site, "ok": True, "metrics": dict(reply.metrics), "weight": reply.weight}
    return found | ({"bytes": nbytes(reply.vectors)} if isinstance(reply, Update) else {})
