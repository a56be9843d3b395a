"""How a site that was away catches up with a model that the server cannot read.

The server keeps the sums of the last rounds as they went out, and at times a snapshot: model and strategy state,
sealed by a site under the job key. A site that stands at round r takes the sums r + 1, r + 2, ...; where they no
longer reach back that far, the snapshot and the sums behind it. Both are the server's to keep and lose, and no one's
to read or forge.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import CheckpointError
from polypfed.core.files import read_framed, write_framed
from polypfed.core.settings import whole
from polypfed.privacy.frames import joined

_SUM, _SNAPSHOT = "sum", "snapshot"


@dataclass(frozen=True)
class Missed:
    """What brings a site up to date: `snapshot` of round `round` if its own state is too old, then the sums after it.

    Attributes:
        round: the round after which the sums follow.
        snapshot: bytes for `keys.open_state`, or None.
        sums: (round, frames joined) in order, without a gap.
    """

    round: int
    snapshot: bytes | None
    sums: tuple[tuple[int, NDArray[np.uint8]], ...]


class SumLog:
    """The server's files of one run.

    Args:
        folder: of this run, for this log only.
        keep: sums kept behind the last one, even where a snapshot makes them superfluous.
    """

    def __init__(self, folder: Path, keep: int = 4) -> None:
        whole("keep", keep, 1)
        self.folder, self.keep = folder, keep

    def add(self, round: int, frames: Iterable[bytes]) -> None:
        """Keep the sum of a round; the rounds must follow each other."""
        rounds = self.rounds(_SUM)
        if rounds and round != rounds[-1] + 1:
            raise CheckpointError(f"round {round} does not follow round {rounds[-1]}", where=self.folder)
        write_framed(self._path(_SUM, round), {"round": round}, joined(frames).tobytes())
        self._trim()

    def snapshot(self, round: int, sealed: bytes) -> None:
        """Keep a state that a site has sealed, of the state after `round`."""
        write_framed(self._path(_SNAPSHOT, round), {"round": round}, sealed)
        self._trim()

    def rounds(self, kind: str = _SUM) -> list[int]:
        """Of which there are files, ascending."""
        return sorted(int(path.stem.partition("-")[2]) for path in self.folder.glob(f"{kind}-*.bin"))

    def wants_snapshot(self, every: int = 4) -> bool:
        """Should a site be asked for one? When more than `every` sums lie behind the last one."""
        sums, snapshots = self.rounds(_SUM), self.rounds(_SNAPSHOT)
        return bool(sums) and sums[-1] - (snapshots[-1] if snapshots else sums[0] - 1) >= every

    def missed(self, has: int) -> Missed:
        """What a site needs that stands after round `has`, 0 for the initial model.

        Raises:
            CheckpointError: the log does not reach back so far, and there is no snapshot; or a file is damaged.
        """
        sums, snapshots = self.rounds(_SUM), self.rounds(_SNAPSHOT)
        if sums and has > sums[-1]:
            raise CheckpointError(f"ends with round {sums[-1]}, the site is at {has}", where=self.folder)
        start, snapshot = has, None
        if sums and has + 1 < sums[0]:
            start = next((r for r in reversed(snapshots) if r + 1 >= sums[0]), -1)
            if start < 0:
                remedy = "Ask a site that is up to date for a snapshot"
                raise CheckpointError(
                    f"begins with round {sums[0]}, the site is at {has}", where=self.folder, remedy=remedy
                )
            snapshot = self._read(_SNAPSHOT, start)
        found = ((r, np.frombuffer(self._read(_SUM, r), np.uint8)) for r in sums if r > start)
        return Missed(start, snapshot, tuple(found))

    def _path(self, kind: str, round: int) -> Path:
        return self.folder / f"{kind}-{round:06d}.bin"

    def _read(self, kind: str, round: int) -> bytes:
        header, body = read_framed(self._path(kind, round))
        if header.get("round") != round:
            raise CheckpointError(f"is of round {header.get('round')}", where=self._path(kind, round))
        return body

    def _trim(self) -> None:
        """Sums go only when a snapshot stands in for them."""
        sums, snapshots = self.rounds(_SUM), self.rounds(_SNAPSHOT)
        usable = [r for r in snapshots if sums and r <= sums[-1]]
        if not usable:
            return
        for round in sums[: -self.keep]:
            if round <= usable[-1]:
                self._path(_SUM, round).unlink()
        for round in usable[:-1]:
            self._path(_SNAPSHOT, round).unlink()
