"""Device: the detector that serves, the model that comes next, and the store between them.

One thread infers. A new global model is filled in, compared with fp32 and warmed beside the old one, and takes over
between two frames; if anything about it fails, the old one goes on serving.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import DataError, PolypfedError
from polypfed.detect.adapt import ORDER, Adapted, adapt
from polypfed.detect.agreement import Limits
from polypfed.detect.detections import Detections
from polypfed.detect.litert import LiteRTDetector
from polypfed.detect.runtime import Delegate
from polypfed.detect.template import Precision, Template

Pixels = NDArray[np.uint8]
_LOG = logging.getLogger(__name__)
_LEAST = 0.001
_ENOUGH = 24  # frames to compare models on
_COUNTED = ("frames", "hard", "kept", "errors", "models", "refused")


class Store(Protocol):
    """What a device needs of `polypfed.data.store.SampleStore`."""

    def add(self, pixels: Pixels, confidence: float, model: str, *, kept: bool = True, name: str = "") -> str: ...


@dataclass
class Device:
    """Frames in, detections out, hard frames into the store.

    Args:
        template: of the models to come.
        store: where hard frames go; None keeps none.
        threshold: frames whose best confidence is below it are hard.
        every: of hard frames in a row only each `every`-th is kept: neighbours in a video are alike.
        recent: frames remembered to calibrate and compare the next model on.
        precisions, limits, threads, delegate: see `adapt`.

    Attributes:
        version: of the serving model; "" before the first.
        counts: frames, hard, kept, errors, models, refused.
        seconds: that the last frame took, from its pixels to its boxes.
    """

    template: Template
    store: Store | None = None
    threshold: float = 0.7
    every: int = 1
    recent: int = 96
    precisions: tuple[Precision, ...] = ORDER
    limits: Limits = field(default_factory=Limits)
    threads: int = 1
    delegate: Delegate | None = None
    version: str = ""
    seconds: float = 0.0
    adapted: Adapted | None = field(default=None, repr=False)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))
    _serving: LiteRTDetector | None = field(default=None, repr=False)
    _next: tuple[str, LiteRTDetector, Adapted] | None = field(default=None, repr=False)
    _seen: deque[Pixels] = field(default_factory=deque, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _unsettled: tuple[str, dict[str, Any]] | None = field(default=None, repr=False)
    _row: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self._seen = deque(maxlen=self.recent)

    @property
    def ready(self) -> bool:
        """Whether a model serves, or will with the next frame."""
        with self._lock:
            return self._serving is not None or self._next is not None

    def adopt(self, version: str, arrays: Mapping[str, Any], frames: Iterable[Pixels] = ()) -> Adapted | None:
        """Make a new global model the next to serve; may be called from another thread than the one that infers.

        Args:
            version: names it in the record. arrays: as for `patch`.
            frames: to compare on, where the device has not seen enough of its own yet.

        Returns:
            What will serve; None if the model cannot, and the old one goes on.
        """
        with self._lock:
            own = list(self._seen)
        some = own if len(own) >= _ENOUGH else [*own, *frames]
        enough = len(some) >= _ENOUGH
        some = some or [np.full((self.template.manifest.imgsz,) * 2 + (3,), 114, np.uint8)]
        try:
            made = adapt(
                self.template, arrays, some, threshold=self.threshold, order=self.precisions if enough else ("fp32",),
                limits=self.limits, calibration=None if enough else some, threads=self.threads, delegate=self.delegate,
            )  # fmt: skip
            detector = LiteRTDetector(made.model, self.threads, self.delegate, conf=_LEAST)
            detector(some[0])  # a delegate compiles at the first frame, which may take half a minute
        except PolypfedError as error:
            self.counts["refused"] += 1
            _LOG.error("model %s cannot serve, %s goes on: %s", version, self.version or "none", error)
            return None
        with self._lock:
            self._next = (version, detector, made)
            self._unsettled = None if enough else (version, dict(arrays))
        return made

    def settle(self) -> Adapted | None:
        """Once enough frames were seen: choose again for a model that serves as fp32 for want of frames."""
        with self._lock:
            waiting, ready = self._unsettled, len(self._seen) >= min(2 * _ENOUGH, self.recent)
        return self.adopt(*waiting) if waiting is not None and ready else None

    def __call__(self, pixels: Pixels, name: str = "") -> Detections:
        """Detect in one frame and record it. A full disk costs the sample, not the detection.

        Raises:
            DataError: no model serves yet.
        """
        with self._lock:
            if self._next is not None:
                (self.version, self._serving, self.adapted), self._next = self._next, None
                self.counts["models"] += 1
            self._seen.append(pixels)
        if self._serving is None:
            raise DataError("no model serves yet", where="device", remedy="Give it the global model first")
        found = self._serving(pixels)
        self.seconds = sum(self._serving.times.values())
        self.counts["frames"] += 1
        hard = found.best < np.float32(self.threshold)
        self._row = self._row + 1 if hard else 0
        kept = bool(hard) and (self._row - 1) % self.every == 0
        self.counts["hard"] += int(hard)
        if self.store is not None:
            try:
                self.store.add(pixels, found.best, self.version, kept=kept, name=name)
                self.counts["kept"] += int(kept)
            except DataError as error:
                self.counts["errors"] += 1
                _LOG.error("a frame was not kept: %s", error)
        return found


@dataclass
class Inbox:
    """New global models as files: the newest `.safetensors` of a folder, once.

    Args:
        folder: where a transport or `polypfed run` leaves models; each is read when its time of change is new.
    """

    folder: Path
    _last: tuple[str, int] = field(default=("", 0), repr=False)

    def newest(self) -> Path | None:
        """A model that was not given yet, if there is one."""
        files = [(p, p.stat().st_mtime_ns) for p in Path(self.folder).glob("*.safetensors")]
        if not files:
            return None
        path, changed = max(files, key=lambda pair: (pair[1], pair[0].name))
        if (path.name, changed) == self._last:
            return None
        self._last = (path.name, changed)
        return path


def serve(
    device: Device,
    frames: Callable[[], Iterable[Any]],
    inbox: Inbox,
    *,
    stop: threading.Event | None = None,
    look: float = 2.0,
    pause: float = 1.0,
    shown: Callable[[Any, Detections], None] = lambda frame, found: None,
) -> None:
    """Infer until `stop` is set or the source ends, taking over new models from `inbox` on the way.

    Args:
        frames: opens the source; each item has `pixels` and `name`. A source that fails is opened again after `pause`
            seconds; one that ends well ends the service.
        look: seconds between looks into the inbox, which happen on a thread of their own.
        shown: called after each frame.
    """
    ended = stop or threading.Event()
    watcher = threading.Thread(target=_watch, args=(device, inbox, ended, look), daemon=True, name="models")
    watcher.start()
    try:
        while not ended.is_set():
            try:
                for frame in frames():
                    while not device.ready and not ended.is_set():
                        time.sleep(0.01)
                    if ended.is_set():
                        break
                    shown(frame, device(frame.pixels, frame.name))
                return
            except DataError as error:
                device.counts["errors"] += 1
                _LOG.error("%s; trying again", error)
                ended.wait(pause)
    finally:
        ended.set()
        watcher.join()


def _watch(device: Device, inbox: Inbox, ended: threading.Event, look: float) -> None:
    from polypfed.core.rundir import load_model

    while True:
        try:
            path = inbox.newest()
            if path is not None:
                spec, vector = load_model(path)
                device.adopt(path.stem, spec.views(vector))
            else:
                device.settle()
        except (PolypfedError, OSError) as error:
            device.counts["refused"] += 1
            _LOG.error("a new model cannot be read: %s", error)
        if ended.wait(look):
            return
