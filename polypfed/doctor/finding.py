"""A finding: what was looked at, how it stands, and the way out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from polypfed.core.errors import PolypfedError
from polypfed.core.messages import one_line

State = Literal["ok", "note", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. "error" would fail; "note" only limits what can be done. Either has a remedy."""

    what: str
    state: State
    detail: str
    remedy: str = ""


def ok(what: str, detail: str) -> Finding:
    """Nothing to do."""
    return Finding(what, "ok", detail)


def attempted(what: str, attempt: Callable[[], str], remedy: str) -> Finding:
    """What `attempt` says, or the error it ends in; an error that names its own remedy keeps it."""
    try:
        return ok(what, attempt())
    except PolypfedError as error:
        place = f"{error.where}: " if error.where else ""
        return Finding(what, "error", one_line(f"{place}{error.problem}"), error.remedy or remedy)
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
        return Finding(what, "error", one_line(f"{type(error).__name__}: {error}"), remedy)


def guarded(what: str, findings: Callable[[], Iterable[Finding]], remedy: str) -> Iterator[Finding]:
    """The findings; an error in making them is one more."""
    try:
        yield from findings()
    except PolypfedError as error:
        place = f"{error.where}: " if error.where else ""
        yield Finding(what, "error", one_line(f"{place}{error.problem}"), error.remedy or remedy)
