"""The device service: source, detector, store and live view from one description, and a file that says how it fares."""

import contextlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from polypfed.clients.device import Device, Inbox, serve
from polypfed.clients.device_settings import DeviceSettings
from polypfed.core.files import write_atomic
from polypfed.data.store import SampleStore, Vault, Writer
from polypfed.detect.detections import Detections
from polypfed.detect.draw import annotate
from polypfed.detect.live import LiveView
from polypfed.detect.runtime import Delegate, cores
from polypfed.detect.sources import Frame, Source
from polypfed.detect.template import Template

_LOG = logging.getLogger(__name__)
_SAY = 1.0  # seconds between two states


def run(
    settings: DeviceSettings, stop: threading.Event, tell: Callable[[str], None] = lambda line: None
) -> dict[str, int]:
    """Serve until `stop` is set or the source ends; returns what was counted.

    Args:
        tell: called with lines for people.

    Raises:
        PolypfedError: what the service needs cannot be opened. What fails later is logged, and the service goes on.
    """
    source = Source(settings.frames)
    source.kind  # noqa: B018 - a source that does not exist should end this before anything is opened
    with contextlib.ExitStack() as stack:
        kept = None
        if settings.store is not None and settings.key is not None:
            kept = stack.enter_context(_writer(settings.store, settings.key, settings, source.live))
        device = Device(
            Template.open(settings.template),
            kept,
            settings.threshold,
            settings.every,
            threads=settings.threads or max(1, cores() - 1),
            delegate=Delegate.parse(settings.delegate) if settings.delegate else None,
        )
        view = stack.enter_context(LiveView(settings.live, threshold=settings.threshold)) if settings.live else None
        if view is not None:
            tell(f"live view: {view.url}")
        state = State(device, settings.status)
        shown = _shower(device, view, state, settings)
        serve(device, lambda: _again(source, settings.repeat, stop), Inbox(settings.models), stop=stop, shown=shown)
        state.write()
    return device.counts


def _writer(store: Path, key: Path, settings: DeviceSettings, live: bool) -> Writer:
    Vault(key)  # a key that cannot be used should be known before the thread starts
    most, days = int(settings.store_gb * 1e9), settings.keep_samples_days
    return Writer(lambda: SampleStore(store, Vault(key, create=False), most_bytes=most), drop=live, keep_days=days)


def _again(source: Source, repeat: bool, stop: threading.Event) -> Iterator[Frame]:
    yield from source.frames()
    while repeat and not source.live and not stop.is_set():
        yield from source.frames()


class State:
    """Writes what the service does to `path`, once a second: model, precision, speed, counts.

    Speed is frames per second of the detector alone, from the median of the last frames, and of the whole loop, which
    waits for its source.
    """

    def __init__(self, device: Device, path: Path) -> None:
        self._device, self._path, self._last = device, path, 0.0
        self._took: deque[float] = deque(maxlen=300)
        self._when: deque[float] = deque(maxlen=300)

    def frame(self, seconds: float) -> float:
        """Count a frame in which the detector took so long; returns frames per second of the loop."""
        now = time.monotonic()
        self._took.append(seconds)
        self._when.append(now)
        if now - self._last >= _SAY:
            self.write()
            self._last = now
        return self._rate()

    def _rate(self) -> float:
        return (len(self._when) - 1) / max(self._when[-1] - self._when[0], 1e-9) if len(self._when) > 1 else 0.0

    def write(self) -> None:
        """Replace the file; a disk that is full costs the state, not the service."""
        took, device = np.array(self._took or [0.0]), self._device
        ms = {f"p{q}_ms": round(1e3 * float(np.percentile(took, q)), 3) for q in (50, 90, 99)}
        about: dict[str, Any] = {"at": time.time(), "model": device.version, "fps": round(self._rate(), 2), **ms}
        about |= {"precision": device.adapted.precision if device.adapted else None, **device.counts}
        try:
            write_atomic(self._path, json.dumps(about).encode() + b"\n")
        except OSError as error:
            _LOG.error("the state cannot be written: %s", error)


def _shower(device: Device, view: LiveView | None, state: State, settings: DeviceSettings) -> Any:
    def shown(frame: Frame, found: Detections) -> None:
        fps = state.frame(device.seconds)
        if view is not None:
            clear = found.above(settings.conf)
            view.update(model=device.version, precision=device.adapted.precision if device.adapted else "")
            view.show(annotate(frame.pixels, clear, settings.threshold), frame.number, len(clear), found.best, fps)

    return shown
