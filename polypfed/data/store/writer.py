"""Frames into a sample store from a thread of its own: packing and writing one takes longer than detecting in it."""

import math
import queue
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import DataError
from polypfed.data.store.store import SampleStore

Pixels = NDArray[np.uint8]
_EVERY = 3600.0  # seconds between two looks for what is too old
_WAITING = 16  # frames: 63 MB at 1280 x 1024


class Writer:
    """A store's `add` that returns at once. Use it as a context manager; leaving it writes what still waits.

    Args:
        opened: opens the store; called in the thread that writes, since a database belongs to one thread.
        waiting: frames that may wait. drop: a frame more is not kept, as a camera wants it; else `add` waits.
        keep_days: what was seen longer ago is forgotten, at the start and then hourly, frames or none; 0 never.

    Raises:
        DataError: the store cannot be opened.
    """

    def __init__(
        self, opened: Callable[[], SampleStore], waiting: int = _WAITING, drop: bool = True, keep_days: float = 0
    ) -> None:
        self._drop, self._seconds = drop, keep_days * 86400
        self._opened, self._queue = opened, queue.Queue[Any](waiting)
        self._failure: DataError | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="samples")

    def __enter__(self) -> "Writer":
        self._thread.start()
        self._ready.wait()
        if not self._thread.is_alive() and self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def add(self, pixels: Pixels, confidence: float, model: str, *, kept: bool = True, name: str = "") -> str:
        """Hand over a frame; `pixels` must not be changed afterwards. The id is not known yet, so it is "".

        Raises:
            DataError: too many frames wait already, or a frame handed over before could not be written.
        """
        failure, self._failure = self._failure, None
        try:
            self._queue.put((pixels if kept else None, confidence, model, name), block=not self._drop)
        except queue.Full:
            remedy = "Keep fewer of them (every), or use a quicker disk"
            raise DataError("frames come faster than they can be written", where="store", remedy=remedy) from None
        if failure is not None:
            raise failure
        return ""

    def _work(self) -> None:
        try:
            store = self._opened()
        except DataError as error:
            self._failure = error
            self._ready.set()
            return
        self._ready.set()
        with store:
            due = -math.inf
            while True:
                if self._seconds and monotonic() - due >= _EVERY:
                    self._noting(lambda: store.retain(self._seconds))
                    due = monotonic()
                try:
                    item = self._queue.get(timeout=_EVERY if self._seconds else None)
                except queue.Empty:
                    continue
                if item is None:
                    return
                self._noting(partial(self._write, store, *item))

    def _write(self, store: SampleStore, pixels: Pixels | None, confidence: float, model: str, name: str) -> None:
        store.add(_NONE if pixels is None else pixels, confidence, model, kept=pixels is not None, name=name)

    def _noting(self, act: Callable[[], object]) -> None:
        try:
            act()
        except DataError as error:
            self._failure = error


_NONE = np.zeros((0, 0, 3), np.uint8)
