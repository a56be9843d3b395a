"""Uploads in frames: every frame is checked when it comes, a site counts once its last one is there, or not at all."""

from collections.abc import Callable, Mapping
from pathlib import Path

from polypfed.privacy.errors import FrameRefused
from polypfed.privacy.frames import Frame, Kind, Label, Verifier, expect, read


class Intake:
    """The uploads of one round.

    Args:
        label: what every frame must belong to.
        kind: of the frames.
        verifiers: the sites of the cohort by number.
        sites: how many may be counted.
        frames: in one upload.
        check: raises FrameRefused if a frame's body is not what it should be.
        spool: an empty folder for uploads under way; in memory without one.
    """

    def __init__(
        self,
        label: Label,
        kind: Kind,
        verifiers: Mapping[int, Verifier],
        sites: int,
        frames: int,
        check: Callable[[Frame], None],
        spool: Path | None = None,
    ) -> None:
        self.counted: list[int] = []
        self._label, self._kind, self._verifiers, self._spool = label, kind, verifiers, spool
        self._sites, self._frames, self._check = sites, frames, check
        self._waiting: dict[int, Upload] = {}

    @property
    def nbytes(self) -> int:
        """Memory of what waits."""
        return sum(upload.nbytes for upload in self._waiting.values())

    def add(self, data: bytes) -> "Upload | None":
        """The whole upload once its last frame has come; call `done` when it has been counted.

        Raises:
            FrameRefused: nothing has changed then.
        """
        frame = read(data, self._verifiers)
        expect(frame, self._label, (self._kind,))
        who = f"site {frame.site}"
        if frame.site in self.counted:
            raise FrameRefused("duplicate", "has been counted in this round", where=who)
        if len(self.counted) >= self._sites:
            raise FrameRefused("too-many-sites", f"the parameters admit {self._sites}", where=who)
        if frame.sites != 1:
            raise FrameRefused("header", f"claims to be a sum of {frame.sites}", where=who)
        upload = self._waiting.get(frame.site) or Upload(frame.site, self._frames, frame.full, self._spool)
        upload.check(frame)
        self._check(frame)
        self._waiting[frame.site] = upload
        return upload if upload.keep(frame) else None

    def done(self, upload: "Upload") -> None:
        """The upload has been counted."""
        self.counted.append(upload.site)
        self.drop(upload.site)

    def drop(self, site: int) -> None:
        """Forget the frames of a site."""
        if upload := self._waiting.pop(site, None):
            upload.clear()


class Upload:
    """The frames of one site, in memory or in a folder."""

    def __init__(self, site: int, count: int, full: bool, folder: Path | None) -> None:
        self.site, self.count, self.full, self._folder = site, count, full, folder
        self._bodies: dict[int, bytes | Path] = {}

    @property
    def nbytes(self) -> int:
        """In memory."""
        return sum(len(b) for b in self._bodies.values() if isinstance(b, bytes))

    def check(self, frame: Frame) -> None:
        """Raise unless the frame is one of `count`, new, and of the same layout as the others."""
        who = f"site {self.site}"
        if frame.count != self.count or frame.index >= self.count:
            raise FrameRefused("frames", f"frame {frame.index} of {frame.count}, there must be {self.count}", where=who)
        if frame.index in self._bodies:
            raise FrameRefused("duplicate", f"frame {frame.index} came twice", where=who)
        if frame.full is not self.full:
            raise FrameRefused("header", "changes its layout between frames", where=who)

    def keep(self, frame: Frame) -> bool:
        """True once all frames are there."""
        if self._folder is None:
            self._bodies[frame.index] = frame.body
        else:
            path = self._folder / f"site{self.site}.{frame.index}"
            path.write_bytes(frame.body)  # read back in this round or never
            self._bodies[frame.index] = path
        return len(self._bodies) == self.count

    def body(self, index: int) -> bytes:
        """Of one frame."""
        kept = self._bodies[index]
        return kept if isinstance(kept, bytes) else kept.read_bytes()

    def clear(self) -> None:
        """Remove what is in the folder."""
        for kept in self._bodies.values():
            if isinstance(kept, Path):
                kept.unlink(missing_ok=True)
        self._bodies.clear()
