"""A log for machines: one JSON object a line, with words and numbers only."""

import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polypfed.core.errors import ConfigError
from polypfed.core.journal import Happening
from polypfed.core.messages import Failure, Update
from polypfed.core.model import nbytes
from polypfed.track.tracking import figures

STANDARD_ERROR = "-"
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,39}")


class JsonLog:
    """A line per event and per figure, for whatever collects logs.

    Every line has "time" (UTC, ISO 8601), "level", "run" (its name) and "event". What a site says of its failures may
    hold anything, file names among them: it stays out, and only the reason is told. Nothing that was logged before a
    resume is logged again.

    Args:
        path: a file that is appended to, opened anew for each event, so that it may be rotated; "-" is standard error.
        name: of the run.
    """

    def __init__(self, path: str | Path, name: str = "run") -> None:
        self._path, self._name = path, name

    def open(self) -> None:
        """Make the file.

        Raises:
            ConfigError: it cannot be written.
        """
        if self._path != STANDARD_ERROR:
            try:
                Path(self._path).parent.mkdir(parents=True, exist_ok=True)
                with open(self._path, "ab"):
                    pass
            except OSError as error:
                raise ConfigError(f"cannot be written ({error.strerror})", where=self._path) from None

    def tell(self, event: Happening) -> None:
        """A line for the event, then one for each figure."""
        failed = isinstance(event.reply, Failure) or event.kind == "abandoned"
        lines = [self._line(event.kind, "warning" if failed else "info", round=event.round, **_about(event))]
        if event.kind != "resumed":
            for (metric, site, round_), value in figures(event.rows).items():
                about = {"site": site} if site else {}
                lines.append(self._line("figure", round=round_, **about, metric=metric, value=value))
        self._write(lines)

    def close(self, error: BaseException | None) -> None:
        """The last line says whether the run came to its end; of an error its kind only."""
        if error is None:
            self._write([self._line("end", ok=True)])
        else:
            self._write([self._line("end", "error", ok=False, error=type(error).__name__)])

    def _line(self, event: str, level: str = "info", **values: Any) -> str:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": now, "level": level, "run": self._name, "event": event, **values})

    def _write(self, lines: list[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        if self._path == STANDARD_ERROR:
            sys.stderr.write(text)
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(text)


def _about(event: Happening) -> dict[str, Any]:
    reply = event.reply
    if not event.site or reply is None:
        return {}
    if isinstance(reply, Failure):
        return {"site": event.site, "ok": False, "reason": reply.reason if _REASON.fullmatch(reply.reason) else "other"}
    return {"site": event.site, "ok": True} | ({"bytes": nbytes(reply.vectors)} if isinstance(reply, Update) else {})
