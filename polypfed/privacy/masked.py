"""Masked slots on the wire, and the server's sum of them."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from polypfed.privacy.errors import FrameRefused
from polypfed.privacy.frames import Frame, Label, Signer, Verifier
from polypfed.privacy.group import Group
from polypfed.privacy.intake import Intake
from polypfed.privacy.slots import Integers

SLOTS = 1 << 18
"""Slots in a frame."""


def label_of(group: Group) -> Label:
    """What the frames of an attempt belong to."""
    params = hashlib.sha256(group.context).digest()[:8]
    return Label(group.job, group.round, group.attempt, bytes(8), params, group.length)


def seal_masked(masked: Integers, group: Group, site: int, signer: Signer) -> Iterator[bytes]:
    """One site's masked slots as frames, 2, 4 or 8 bytes a slot.

    Args:
        site: this site's number in the roster.
    """
    label, count = label_of(group), -(-group.length // SLOTS)
    little = group.ring.dtype.newbyteorder("<")
    for index in range(count):
        body = masked[index * SLOTS : (index + 1) * SLOTS].astype(little, copy=False).tobytes()
        yield Frame(label, "masked", site, 1, index, count, body).seal(signer)


class MaskedSum:
    """The server's sum of masked slots: one vector, whatever the number of sites. All or nothing per site.

    Args:
        verifiers: of the group's sites by number.
        spool: an empty folder for uploads under way; in memory without one.
    """

    def __init__(self, group: Group, verifiers: Mapping[int, Verifier], spool: Path | None = None) -> None:
        self.group = group
        self.total: Integers = group.ring.zeros(group.length)
        own = {group.roster.number(n): verifiers[group.roster.number(n)] for n in group.names}
        frames = -(-group.length // SLOTS)
        self._intake = Intake(label_of(group), "masked", own, len(group.names), frames, self._check, spool)

    @property
    def participants(self) -> list[str]:
        """Names of the sites counted so far."""
        return sorted(self.group.roster.names[number] for number in self._intake.counted)

    @property
    def nbytes(self) -> int:
        """Memory of the sum and of uploads that wait in memory."""
        return self.total.nbytes + self._intake.nbytes

    def add(self, data: bytes) -> int | None:
        """Take one frame; the number of its site once it has been counted.

        Raises:
            FrameRefused: as in `Accumulator.add`.
        """
        upload = self._intake.add(data)
        if upload is None:
            return None
        for index in range(upload.count):
            part = self.total[index * SLOTS : (index + 1) * SLOTS]
            self.group.ring.add(part, self._read(upload.body(index)))
        self._intake.done(upload)
        return upload.site

    def drop(self, site: int) -> None:
        """Forget the frames of a site that will not be completed."""
        self._intake.drop(site)

    def _check(self, frame: Frame) -> None:
        wanted = min(SLOTS, self.group.length - frame.index * SLOTS) * self.group.ring.dtype.itemsize
        if frame.full or len(frame.body) != wanted or not self.group.ring.holds(self._read(frame.body)):
            raise FrameRefused("body", "does not hold the slots it should", where=f"site {frame.site}")

    def _read(self, body: bytes) -> Integers:
        return np.frombuffer(body, self.group.ring.dtype.newbyteorder("<")).astype(self.group.ring.dtype, copy=False)
