"""The keys of encrypted and masked runs: private, whole, and those that the roster names."""

from collections.abc import Iterator
from pathlib import Path

from polypfed.core.errors import PolypfedError
from polypfed.core.messages import one_line
from polypfed.doctor.finding import Finding, ok
from polypfed.privacy.keyring import IDENTITY, ROSTER, read_roster
from polypfed.privacy.roster import Identity


def keys(folder: Path, name: str | None = None) -> Iterator[Finding]:
    """A `keys` folder, if there is one; `name` is whose it must be."""
    if not (folder / IDENTITY).exists():
        return
    what, again = f"keys in {folder}", f"polypfed keys create {name or 'NAME'} --to {folder}, and a new roster"
    try:
        public = Identity.load(folder / IDENTITY).public
        if name is not None and public.name != name:
            detail = f"{IDENTITY} is that of {public.name}, not of {name}"
            yield Finding(what, "error", detail, f"Put back the key of {name}, or make one: {again}")
            return
        if not (folder / ROSTER).exists():
            yield Finding(what, "note", "there is no roster", f"Copy {ROSTER} of the federation into {folder}")
            return
        roster = read_roster(folder / ROSTER)
        if public not in (*roster.members, roster.server):
            detail = f"{ROSTER} names another key for {public.name}, or none: a wrong key"
            yield Finding(what, "error", detail, f"Put back the key the roster was made with, or: {again}")
            return
    except PolypfedError as error:
        yield Finding(what, "error", one_line(error), error.remedy or f"Make them anew: {again}")
        return
    yield ok(what, f"{public.name}, fingerprint {public.fingerprint}")
