"""Frames from wherever they come: a folder of images, a video file, a camera, a stream."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import DataError
from polypfed.core.extras import require

Pixels = NDArray[np.uint8]
_LOG = logging.getLogger(__name__)
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
_STREAMS = ("rtsp", "rtmp", "http", "https", "udp", "tcp")
_LARGEST = 50_000_000  # pixels; a header may claim anything


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: (h, w, 3) uint8 RGB, its number from 0, a name, and its time in the source in seconds, if known."""

    pixels: Pixels
    number: int
    name: str
    seconds: float | None = None


@dataclass(frozen=True)
class Source:
    """Where frames come from. Open it with `frames()`.

    Args:
        text: a folder or an image; a video file; a camera ("0", "/dev/video0"); a stream ("rtsp://...").
        retries: how often a camera or stream that falls silent is opened again, with a pause of `pause` seconds.
    """

    text: str
    retries: int = 5
    pause: float = 1.0

    @property
    def kind(self) -> str:
        """ "images", "video", "camera" or "stream".

        Raises:
            DataError: there is no such thing.
        """
        path = Path(self.text)
        if self.text.isdigit() or self.text.startswith("/dev/video"):
            return "camera"
        if urlsplit(self.text).scheme in _STREAMS:
            return "stream"
        if path.is_dir() or path.suffix.lower() in _IMAGES:
            return "images"
        if path.is_file():
            return "video"
        raise DataError("no such file, folder or camera", where=self.text)

    @property
    def live(self) -> bool:
        """Whether frames that are not taken in time are lost."""
        return self.kind in ("camera", "stream")

    def frames(self) -> Iterator[Frame]:
        """The frames, one by one. A damaged image of a folder is logged and left out.

        Raises:
            DataError: nothing can be opened, or a camera stays silent after all retries.
        """
        return self._images() if self.kind == "images" else self._video()

    def _images(self) -> Iterator[Frame]:
        path = Path(self.text)
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in _IMAGES)
        if not files:
            raise DataError("holds no images", where=self.text, remedy=f"Known are {', '.join(_IMAGES)}")
        number = 0
        for file in files:
            try:
                pixels = _decode(file)
            except DataError as error:
                _LOG.warning("%s", error)
                continue
            yield Frame(pixels, number, str(file.relative_to(path)) if path.is_dir() else file.name)
            number += 1
        if not number:
            raise DataError("none of its images can be read", where=self.text)

    def _video(self) -> Iterator[Frame]:
        cv2 = require("cv2", extra="edge")
        number, left, kind = 0, self.retries, self.kind
        while True:
            capture = self._open(cv2, kind, number)
            if capture is not None:
                try:
                    for pixels, seconds in _read(cv2, capture):
                        yield Frame(pixels, number, f"frame-{number:06d}", None if self.live else seconds)
                        number, left = number + 1, self.retries
                finally:
                    capture.release()
            if kind == "video":
                return
            if left == 0:
                raise DataError(f"gives no more frames after {number}", where=self.text, remedy="Is it plugged in?")
            left -= 1
            _LOG.warning("%s is silent; opening it again", self.text)
            time.sleep(self.pause)

    def _open(self, cv2: Any, kind: str, number: int) -> Any:
        where: str | int = int(self.text) if self.text.isdigit() else self.text
        said = cv2.utils.logging if hasattr(cv2.utils, "logging") else cv2  # OpenCV 5, OpenCV 4
        level = said.getLogLevel()
        said.setLogLevel(0)  # its own messages would name no way out
        try:
            capture = cv2.VideoCapture(where)
        finally:
            said.setLogLevel(level)
        if capture.isOpened():
            return capture
        capture.release()
        if kind == "video" or (number == 0 and self.retries == 0):
            raise DataError(f"this {kind} cannot be opened", where=self.text)
        return None


def _read(cv2: Any, capture: Any) -> Iterator[tuple[Pixels, float]]:
    while True:
        there, image = capture.read()
        if not there:
            return
        if image.ndim != 3 or image.size > 3 * _LARGEST:
            raise DataError(f"gives frames of shape {image.shape}", where="video")
        yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB), capture.get(cv2.CAP_PROP_POS_MSEC) / 1000


def _decode(path: Path) -> Pixels:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.width * image.height > _LARGEST:
                raise DataError(f"is {image.width} x {image.height} pixels large", where=path)
            return np.asarray(image.convert("RGB"))
    # ImportError: ultralytics replaces Image.open by one that looks for further packages.
    except (OSError, ValueError, SyntaxError, ImportError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot be read ({error})", where=path) from None
