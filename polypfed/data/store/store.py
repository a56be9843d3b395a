"""SampleStore: what a device saw, how sure which model was, what was kept, and what people said it shows.

Pixels, file names and boxes are encrypted; SQLite holds what is needed to choose among frames: a random id, times,
sizes, confidences, model versions, and the state of the label. A frame that was not kept leaves a score, no image.
"""

import io
import json
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from polypfed.core.errors import ConfigError, DataError
from polypfed.core.files import sweep, write_atomic
from polypfed.data.sample import Boxes
from polypfed.data.store.vault import Vault

Label = Literal["none", "exported", "human", "pseudo"]
LABELS: tuple[Label, ...] = get_args(Label)
Pixels = NDArray[np.uint8]

_TABLES = """
CREATE TABLE IF NOT EXISTS frames (
    id TEXT PRIMARY KEY, seen REAL NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    bytes INTEGER NOT NULL, label TEXT NOT NULL DEFAULT 'none', labelled_by TEXT NOT NULL DEFAULT '', boxes BLOB);
CREATE TABLE IF NOT EXISTS scores (
    frame TEXT NOT NULL, at REAL NOT NULL, model TEXT NOT NULL, confidence REAL NOT NULL, kept INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS scores_of ON scores (frame);
"""


@dataclass(frozen=True)
class Record:
    """One kept frame. `confidence` and `model` are those of its newest score; `label` is one of `LABELS`."""

    id: str
    seen: float
    size: tuple[int, int]
    bytes: int
    label: Label
    labelled_by: str
    confidence: float
    model: str


class SampleStore:
    """Use it as a context manager, or call `close`. Several processes may have it open: the device service adds frames
    while a person's answers come in and training reads. Each write is one transaction, files included.

    Args:
        folder: made if it is missing; holds `store.db` and `frames/`.
        vault: seals what is kept.
        most_bytes: of frames; the oldest go first when there would be more, those with a human label last.
        clock: seconds since the epoch.

    Raises:
        DataError: the folder cannot be used, or is no store.
    """

    def __init__(
        self, folder: Path, vault: Vault, most_bytes: int | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder, self._vault, self._most, self._clock = Path(folder), vault, most_bytes, clock
        try:
            (self.folder / "frames").mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(self.folder / "store.db", isolation_level=None, timeout=10)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")  # a power cut may cost the last frames, not the store
            self._base.execute("PRAGMA secure_delete=ON")
            self._base.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"cannot be used as a sample store ({error})", where=self.folder) from None
        self._tidy()

    def __enter__(self) -> "SampleStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the database."""
        self._base.close()

    def add(self, pixels: Pixels, confidence: float, model: str, *, kept: bool = True, name: str = "") -> str:
        """Record a frame, and keep its image if it was chosen.

        Args:
            pixels: (h, w, 3) uint8 RGB; kept without loss.
            confidence: of the best detection. model: version that gave it.
            name: where it came from; encrypted with the image.

        Returns:
            Its id, random, so that it tells nothing.

        Raises:
            DataError: the disk is full; nothing of the frame remains then.
        """
        frame, now = secrets.token_hex(8), self._clock()
        if not kept:
            with self._writing():
                self._score(frame, now, model, confidence, False)
            return frame
        packed = io.BytesIO()
        Image.fromarray(pixels).save(packed, "PNG", compress_level=1)
        about = json.dumps({"name": name}).encode()
        sealed = self._vault.seal(len(about).to_bytes(4, "little") + about + packed.getvalue(), frame)
        self._make_room(len(sealed))
        with self._writing():
            try:
                write_atomic(self._path(frame), sealed)
                row = (frame, now, pixels.shape[1], pixels.shape[0], len(sealed))
                self._base.execute("INSERT INTO frames (id, seen, width, height, bytes) VALUES (?, ?, ?, ?, ?)", row)
                self._score(frame, now, model, confidence, True)
            except BaseException:
                self._path(frame).unlink(missing_ok=True)
                raise
        return frame

    def score(self, frame: str, confidence: float, model: str, kept: bool = True) -> None:
        """A newer model's confidence on a kept frame."""
        self._known(frame)
        with self._writing():
            self._score(frame, self._clock(), model, confidence, kept)

    def label(self, frame: str, boxes: ArrayLike, by: str, *, pseudo: bool = False) -> None:
        """What a frame shows.

        Args:
            boxes: (n, 4) xyxy pixels; none is a statement too: no polyp.
            by: the person, or the model version of a pseudo label.
            pseudo: the boxes are a model's. They never replace a person's.

        Raises:
            DataError: unknown frame, or boxes outside it.
        """
        record = self._known(frame)
        if pseudo and record.label == "human":
            return
        found = _boxes(boxes, record.size, frame)
        sealed = self._vault.seal(json.dumps(found.tolist()).encode(), f"{frame}.boxes")
        with self._writing():
            self._base.execute(
                "UPDATE frames SET label = ?, labelled_by = ?, boxes = ? WHERE id = ?",
                ("pseudo" if pseudo else "human", by, sealed, frame),
            )

    def exported(self, frames: Sequence[str]) -> None:
        """Mark frames as waiting for a person."""
        with self._writing():
            self._base.executemany(
                "UPDATE frames SET label = 'exported' WHERE id = ? AND label = 'none'", [(f,) for f in frames]
            )

    def records(self, *labels: Label) -> list[Record]:
        """Kept frames in the order seen; those with one of `labels`, or all."""
        if unknown := set(labels) - set(LABELS):
            raise ConfigError(f"no such state: {sorted(unknown)[0]}", where="labels")
        chosen = labels or LABELS
        return self._records(f"label IN ({', '.join('?' * len(chosen))})", chosen)

    def _records(self, condition: str, values: Sequence[str]) -> list[Record]:
        # Of a frame's scores the newest: a bare column beside MAX is of that row in SQLite.
        query = (
            "SELECT f.id, seen, width, height, bytes, label, labelled_by, confidence, model, MAX(s.rowid) FROM frames f"
            f" JOIN scores s ON s.frame = f.id WHERE {condition} GROUP BY f.id ORDER BY seen, f.rowid"
        )
        rows = self._base.execute(query, tuple(values))
        return [Record(i, at, (w, h), n, state, by, c, m) for i, at, w, h, n, state, by, c, m, _ in rows]

    def trainable(self, pseudo: bool = False) -> list[Record]:
        """Frames that may be trained on: labelled by a person; by a model too only where that was switched on."""
        return self.records("human", "pseudo") if pseudo else self.records("human")

    def scores(self, frame: str) -> list[tuple[float, str, float, bool]]:
        """(time, model, confidence, kept) of every look at a frame, oldest first."""
        rows = self._base.execute(
            "SELECT at, model, confidence, kept FROM scores WHERE frame = ? ORDER BY rowid", (frame,)
        )
        return [(at, model, confidence, bool(kept)) for at, model, confidence, kept in rows]

    def counts(self) -> dict[str, int]:
        """Frames seen, kept, their bytes, and how many there are of each label."""
        seen = self._base.execute("SELECT COUNT(DISTINCT frame) FROM scores").fetchone()[0]
        kept, size = self._base.execute("SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM frames").fetchone()
        states = dict(self._base.execute("SELECT label, COUNT(*) FROM frames GROUP BY label").fetchall())
        return {"seen": seen, "kept": kept, "bytes": size, **{name: states.get(name, 0) for name in LABELS}}

    def image(self, frame: str) -> Pixels:
        """(h, w, 3) uint8 RGB.

        Raises:
            DataError: unknown, changed on disk, or sealed with another key.
        """
        return np.asarray(Image.open(io.BytesIO(self._open(frame)[1])).convert("RGB"))

    def png(self, frame: str) -> bytes:
        """The image as PNG."""
        return self._open(frame)[1]

    def name(self, frame: str) -> str:
        """Where it came from."""
        return str(self._open(frame)[0]["name"])

    def boxes(self, frame: str) -> Boxes:
        """(n, 4) float32 xyxy pixels.

        Raises:
            DataError: it has no label.
        """
        row = self._base.execute("SELECT boxes FROM frames WHERE id = ?", (frame,)).fetchone()
        if row is None or row[0] is None:
            raise DataError("has no label", where=frame)
        return np.array(json.loads(self._vault.open(row[0], f"{frame}.boxes")), np.float32).reshape(-1, 4)

    def remove(self, frames: Sequence[str]) -> int:
        """Forget frames, images and scores; returns how many there were."""
        with self._writing():
            return self._forget(frames)

    def retain(self, seconds: float) -> int:
        """Forget what was seen longer ago than `seconds`, whatever its label; returns how many images went."""
        limit = self._clock() - seconds
        old = [row[0] for row in self._base.execute("SELECT id FROM frames WHERE seen < ?", (limit,))]
        gone = self.remove(old)
        with self._writing():
            self._base.execute("DELETE FROM scores WHERE at < ? AND frame NOT IN (SELECT id FROM frames)", (limit,))
        return gone

    def wipe(self) -> None:
        """Destroy the key first, then everything else. The store cannot be used afterwards."""
        self._vault.destroy()
        self._base.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            raise DataError("could not be removed; without its key it cannot be read", where=self.folder)

    def _forget(self, frames: Sequence[str]) -> int:
        for frame in frames:
            self._path(frame).unlink(missing_ok=True)
        gone = self._base.executemany("DELETE FROM frames WHERE id = ?", [(f,) for f in frames]).rowcount
        self._base.executemany("DELETE FROM scores WHERE frame = ?", [(f,) for f in frames])
        return max(gone, 0)

    def _score(self, frame: str, at: float, model: str, confidence: float, kept: bool) -> None:
        row = (frame, at, model, float(confidence), int(kept))
        self._base.execute("INSERT INTO scores (frame, at, model, confidence, kept) VALUES (?, ?, ?, ?, ?)", row)

    def _open(self, frame: str) -> tuple[dict[str, object], bytes]:
        self._known(frame)
        try:
            data = self._vault.open(self._path(frame).read_bytes(), frame)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", where=self._path(frame)) from None
        length = int.from_bytes(data[:4], "little")
        return json.loads(data[4 : 4 + length]), data[4 + length :]

    def _known(self, frame: str) -> Record:
        found = self._records("f.id = ?", [frame])
        if not found:
            raise DataError("no such frame in the store", where=frame)
        return found[0]

    def _path(self, frame: str) -> Path:
        return self.folder / "frames" / f"{frame}.bin"

    def _make_room(self, size: int) -> None:
        if self._most is None:
            return
        if size > self._most:
            raise DataError(f"a frame of {size} bytes is larger than the store may be", where="most_bytes")
        rows = self._base.execute("SELECT id, bytes FROM frames ORDER BY label = 'human', seen, rowid").fetchall()
        total, gone = sum(n for _, n in rows) + size, []
        for frame, count in rows:
            if total <= self._most:
                break
            gone.append(frame)
            total -= count
        if gone:
            self.remove(gone)

    def _tidy(self) -> None:
        """Files without a row, left by a kill between the two, go; rows without a file too."""
        with self._writing():  # nobody else is between a file and its row then
            sweep(self.folder)
            rows = {row[0] for row in self._base.execute("SELECT id FROM frames")}
            files = {p.stem for p in (self.folder / "frames").glob("*.bin")}
            self._forget(sorted(rows ^ files))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self._base.execute("BEGIN IMMEDIATE")
            yield
            self._base.execute("COMMIT")
        except BaseException as error:
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            if isinstance(error, OSError | sqlite3.Error):
                remedy = "Free some space, or lower the store's limit"
                raise DataError(f"cannot be written ({error})", where=self.folder, remedy=remedy) from None
            raise


def _boxes(boxes: ArrayLike, size: tuple[int, int], frame: str) -> Boxes:
    found = np.asarray(boxes, np.float32)
    found = found.reshape(0, 4) if found.size == 0 else found
    limit = np.array([*size, *size], np.float32) + 0.5
    if found.ndim != 2 or found.shape[1] != 4 or not np.isfinite(found).all():
        raise DataError(f"boxes have shape {found.shape}, not (n, 4)", where=frame)
    if (found < -0.5).any() or (found > limit).any() or (found[:, 2:] <= found[:, :2]).any():
        raise DataError("a box is empty or lies outside the frame", where=frame)
    return found.clip(0, limit - 0.5)
