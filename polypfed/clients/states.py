"""What a client kept after each of its last rounds: on disk if it must survive a restart, else in memory."""

import re
from pathlib import Path

from polypfed.core.errors import CheckpointError
from polypfed.core.files import read_framed, write_framed

KEEP = 4  # one that is pending, and one for each of the server's three checkpoints
_NAME = re.compile(r"round-(\d{6,})\.bin")


class States:
    """States by round. A client that keeps nothing leaves no file.

    Args:
        directory: one file per round lies here; None keeps the last two in memory, as no run can be resumed then.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._memory: dict[int, bytes] = {}
        found = directory.iterdir() if directory is not None and directory.is_dir() else iter(())
        self._rounds = sorted(int(m[1]) for p in found if (m := _NAME.fullmatch(p.name)))

    def __contains__(self, number: int) -> bool:
        return number in self._rounds

    def __len__(self) -> int:
        return len(self._rounds)

    def get(self, number: int) -> bytes:
        """The state after round `number`; b"" if there is none.

        Raises:
            CheckpointError: its file is damaged.
        """
        if number not in self._rounds:
            return b""
        if self._directory is None:
            return self._memory[number]
        header, state = read_framed(self._path(number))
        if header != {"round": number}:
            raise CheckpointError("is the state of another round", where=self._path(number))
        return state

    def add(self, number: int, state: bytes) -> None:
        """Keep `state`, and forget what is older than the last few rounds."""
        if self._directory is None:
            self._memory[number] = state
        elif state or self._rounds:
            write_framed(self._path(number), {"round": number}, state)
        else:
            return
        self._rounds = sorted({*self._rounds, number})
        self._forget(self._rounds[: -KEEP if self._directory else -2])

    def drop_after(self, number: int) -> None:
        """Forget every state later than round `number`."""
        self._forget([n for n in self._rounds if n > number])

    def _forget(self, rounds: list[int]) -> None:
        for number in rounds:
            self._memory.pop(number, None)
            if self._directory is not None:
                self._path(number).unlink(missing_ok=True)
        self._rounds = [n for n in self._rounds if n not in rounds]

    def _path(self, number: int) -> Path:
        assert self._directory is not None
        return self._directory / f"round-{number:06d}.bin"
