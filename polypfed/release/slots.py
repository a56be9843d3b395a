"""Two slots on a device and a state that says which of them boots; each write is whole or absent.

slots/a.safetensors, slots/b.safetensors    a release each
state                                       current slot, versions, SHA-256 of both, the counter, boots on trial
"""

import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from polypfed.core.errors import CheckpointError
from polypfed.core.files import read_framed, sweep, write_atomic, write_framed
from polypfed.release.bundle import Release, read_bundle
from polypfed.release.errors import ReleaseRefused

TRIALS = 3
"""Boots that a new release has to be confirmed in."""


@dataclass(frozen=True)
class State:
    """What a device remembers.

    Attributes:
        current: the slot that boots; "" before the first release.
        versions, digests: of the releases in the slots.
        counter: the largest version that ever was accepted; nothing below or equal is.
        trial: not yet confirmed; boots: how often it was started so far.
        group: of the fleet. refused: versions that fell back.
    """

    current: str = ""
    versions: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    counter: int = 0
    trial: bool = False
    boots: int = 0
    group: str = "all"
    refused: list[int] = field(default_factory=list)


class Slots:
    """A device's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def state(self) -> State:
        """As it was last written.

        Raises:
            ReleaseRefused: the file is damaged.
        """
        path = self.folder / "state"
        if not path.exists():
            return State()
        try:
            header: dict[str, Any] = read_framed(path)[0]
            return State(**header)
        except (CheckpointError, TypeError) as error:
            raise ReleaseRefused(f"cannot be read ({error})", where=path, remedy="Set the device up anew") from None

    def keep(self, state: State) -> None:
        """Write the state."""
        write_framed(self.folder / "state", asdict(state))

    @property
    def free(self) -> str:
        """The slot that does not boot."""
        return "b" if self.state.current == "a" else "a"

    def path(self, slot: str) -> Path:
        """Of a slot's release."""
        return self.folder / "slots" / f"{slot}.safetensors"

    def put(self, data: bytes) -> Path:
        """Write a release into the free slot. Until `flip` nothing falls back on what is in there."""
        sweep(self.folder)
        slot, state = self.free, self.state
        if slot in state.digests:
            self.keep(replace(state, digests={k: v for k, v in state.digests.items() if k != slot}))
        write_atomic(self.path(slot), data)
        return self.path(slot)

    def flip(self, digest: str, version: int) -> None:
        """Boot the other slot, which holds this release, from now on, on trial."""
        state, slot = self.state, self.free
        versions, digests = state.versions | {slot: version}, state.digests | {slot: digest}
        self.keep(
            replace(state, current=slot, versions=versions, digests=digests, counter=version, trial=True, boots=0)
        )

    def boot(self) -> Release:
        """The release to run. One on trial that was started too often without `confirm`, or is damaged, falls back.

        Raises:
            ReleaseRefused: there is none that works.
        """
        state = self.state
        if state.trial and state.boots >= TRIALS:
            state = self._back(state)
        elif state.trial:
            state = replace(state, boots=state.boots + 1)
            self.keep(state)
        for _ in range(2):
            found = self._open(state, state.current)
            if found is not None:
                return found
            state = self._back(state)
        raise ReleaseRefused("no release works", where=self.folder, remedy="Install one: polypfed release install")

    def confirm(self) -> None:
        """The release that runs does its work; it is no longer on trial."""
        if self.state.trial:
            self.keep(replace(self.state, trial=False, boots=0))

    def _back(self, state: State) -> State:
        """The other slot boots again. A device without another release keeps what it has."""
        other = "b" if state.current == "a" else "a"
        if self._open(state, other) is None:
            return state
        refused = sorted({*state.refused, state.versions.get(state.current, 0)} - {0})
        state = replace(state, current=other, trial=False, boots=0, refused=refused)
        self.keep(state)
        return state

    def _open(self, state: State, slot: str) -> Release | None:
        """The release in a slot, if it is the one that was put there."""
        try:
            data = self.path(slot).read_bytes()
        except OSError:
            return None
        if not slot or hashlib.sha256(data).hexdigest() != state.digests.get(slot):
            return None
        try:
            return read_bundle(data, self.path(slot))
        except ReleaseRefused:
            return None
