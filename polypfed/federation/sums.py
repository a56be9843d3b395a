"""What a server keeps whose sites follow by sums: these by round; under encryption wrapped keys and a snapshot too."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polypfed.core.errors import CheckpointError
from polypfed.core.files import read_framed, write_framed

_NAME = re.compile(r"sum-(\d{6})\.bin")


@dataclass(frozen=True)
class Entry:
    """JSON values about some pieces of bytes, and the pieces."""

    about: dict[str, Any]
    pieces: tuple[bytes, ...] = ()


class SumLog:
    """Entries on disk, one file each.

    Args:
        folder: of this log alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cache: dict[int, Entry] = {}

    @property
    def rounds(self) -> list[int]:
        """The rounds whose sums are here."""
        found = self._folder.iterdir() if self._folder.is_dir() else iter(())
        return sorted(int(m[1]) for p in found if (m := _NAME.fullmatch(p.name)))

    def add(self, number: int, about: Mapping[str, Any], pieces: Sequence[bytes]) -> None:
        """Keep the sum of a round."""
        entry = Entry(dict(about), tuple(pieces))
        _write(self._sum(number), entry)
        self._cache = {n: e for n, e in self._cache.items() if n > number - 2} | {number: entry}

    def get(self, number: int) -> Entry:
        """The sum of a round.

        Raises:
            CheckpointError: it is not here, or damaged.
        """
        if number not in self._cache:
            self._cache[number] = _read(self._sum(number))
        return self._cache[number]

    def keep(self, most: int) -> None:
        """Forget the oldest rounds until the files are of no more bytes than this together; the last one stays."""
        held = 0
        for number in reversed(self.rounds):
            held += self._sum(number).stat().st_size
            if held > most:
                self.drop_to(min(number, self.rounds[-1] - 1))
                return

    def drop_to(self, number: int) -> None:
        """Forget the rounds up to `number`: a snapshot covers them."""
        self._drop([n for n in self.rounds if n <= number])

    def drop_after(self, number: int) -> None:
        """Forget the rounds after `number`: the checkpoint does not know of them."""
        self._drop([n for n in self.rounds if n > number])

    def _drop(self, rounds: list[int]) -> None:
        for number in rounds:
            self._cache.pop(number, None)
            self._sum(number).unlink(missing_ok=True)

    def _sum(self, number: int) -> Path:
        return self._folder / f"sum-{number:06d}.bin"

    @property
    def snapshot(self) -> Entry | None:
        """The latest snapshot: {"round", "epoch"} and one piece."""
        path = self._folder / "snapshot.bin"
        return _read(path) if path.exists() else None

    def keep_snapshot(self, number: int, epoch: int, sealed: bytes) -> None:
        """Replace the snapshot by that of round `number`."""
        _write(self._folder / "snapshot.bin", Entry({"round": number, "epoch": epoch}, (sealed,)))

    def keep_keys(self, epoch: int, about: Mapping[str, Any], pieces: Mapping[str, bytes]) -> None:
        """Keep the job key of an epoch as it was wrapped for each site."""
        names = sorted(pieces)
        entry = Entry({**about, "epoch": epoch, "names": names}, tuple(pieces[name] for name in names))
        _write(self._folder / f"keys-{epoch:06d}.bin", entry)

    def keys(self) -> dict[int, Entry]:
        """The wrapped keys by epoch."""
        found = [_read(path) for path in sorted(self._folder.glob("keys-*.bin"))] if self._folder.is_dir() else []
        return {int(entry.about["epoch"]): entry for entry in found}


def _write(path: Path, entry: Entry) -> None:
    lengths = [len(piece) for piece in entry.pieces]
    write_framed(path, {"about": entry.about, "lengths": lengths}, b"".join(entry.pieces))


def _read(path: Path) -> Entry:
    header, body = read_framed(path)
    try:
        lengths = [int(n) for n in header["lengths"]]
        stops = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        pieces = tuple(body[stop - n : stop] for stop, n in zip(stops, lengths, strict=True))
        return Entry(dict(header["about"]), pieces)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"is no log of sums ({error})", where=path) from None
