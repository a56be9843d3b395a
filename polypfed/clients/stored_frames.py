"""The labelled frames of a device's sample store as a training set; decrypted in memory, never on the disk."""

from collections.abc import Sequence
from pathlib import Path

from polypfed.clients.frames import Cache, Frames
from polypfed.data.sample import Sample
from polypfed.data.store import Record, SampleStore
from polypfed.detect.letterbox import Pixels


class StoredFrames(Frames):
    """As `Frames`; `refresh` takes up what has been labelled since.

    Args:
        folders: YOLO folders that are read as well.
        imgsz, cache: see `Frames`.
    """

    def __init__(self, folders: Sequence[str | Path], imgsz: int, cache: Cache = "ram") -> None:
        super().__init__(folders, imgsz, cache)
        self._others = self.samples
        self._store: SampleStore | None = None
        self.pseudo: set[str] = set()

    def refresh(self, store: SampleStore, pseudo: bool = False) -> None:
        """Take the store's frames that may be trained on; `store` must stay open while they are read.

        Args:
            pseudo: those that only a model labelled too; their ids are in `self.pseudo`.
        """
        records = store.trainable(pseudo)
        self._store = store
        self.pseudo = {r.id for r in records if r.label == "pseudo"}
        self.samples = [*self._others, *(_sample(store, record) for record in records)]
        known = {sample.image for sample in self.samples}
        self._pixels = {path: pixels for path, pixels in self._pixels.items() if path in known}

    def stored(self) -> set[str]:
        """Ids of the samples that are of the store."""
        return {sample.id for sample in self.samples[len(self._others) :]}

    def _read(self, sample: Sample) -> Pixels:
        if self._store is None or sample.image.parent != self._store.folder / "frames":
            return super()._read(sample)
        return self._store.image(sample.id)


def _sample(store: SampleStore, record: Record) -> Sample:
    return Sample(record.id, store.folder / "frames" / f"{record.id}.bin", store.boxes(record.id), record.size)
