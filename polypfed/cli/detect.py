"""`polypfed detect`: a model over images, a video, a camera or a stream; what it finds as pictures and JSON lines."""

import contextlib
import errno
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from polypfed.cli.show import console
from polypfed.core.errors import ConfigError, DataError


def detect(
    source: Annotated[str, typer.Argument(help="Folder, image, video, camera (0, /dev/video0) or rtsp:// stream.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="A .tflite written by polypfed export.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for annotated images, or an .mp4.")] = None,
    jsonl: Annotated[Path | None, typer.Option(help="Detections as JSON lines; - for standard output.")] = None,
    conf: Annotated[float, typer.Option(help="Least confidence shown.")] = 0.25,
    iou: Annotated[float, typer.Option(help="Overlap above which the weaker of two boxes goes.")] = 0.7,
    threshold: Annotated[float, typer.Option(help="Frames below it are hard.")] = 0.7,
    threads: Annotated[int, typer.Option(help="Of the interpreter; 0 for all cores.")] = 0,
    delegate: Annotated[str | None, typer.Option(help="Delegate library, with options: LIB,key:value.")] = None,
    smooth: Annotated[bool, typer.Option(help="Average boxes and confidences over frames.")] = False,
    live: Annotated[bool, typer.Option(help="Show a live view in the browser of this machine.")] = False,
    port: Annotated[int, typer.Option(help="Of the live view; 0 takes a free one.")] = 8501,
    most: Annotated[int | None, typer.Option("--frames", help="Stop after so many frames.")] = None,
) -> None:
    """Find polyps in frames as they come."""
    from polypfed.detect.latency import precision_of
    from polypfed.detect.litert import LiteRTDetector
    from polypfed.detect.live import LiveView
    from polypfed.detect.runtime import Delegate, cores
    from polypfed.detect.smooth import Smoother
    from polypfed.detect.sources import Source
    from polypfed.detect.tflite import TFLite

    where = Source(source)
    kind = where.kind
    library = Delegate.parse(delegate) if delegate else None
    detector = LiteRTDetector(model, threads or cores(), library, conf, iou)
    with _written(jsonl or out), contextlib.ExitStack() as stack:
        lines: IO[str] | None = None
        if jsonl is not None:
            lines = sys.stdout if str(jsonl) == "-" else stack.enter_context(_open(jsonl))
        view = None
        if live:
            precision = precision_of(TFLite(model.read_bytes(), model))
            view = stack.enter_context(LiveView(port, model.stem, precision, threshold))
            console.print(f"live view: {view.url}", markup=False)
        writer = stack.enter_context(_Writer(out, kind, threshold)) if out else None
        totals = _loop(where, detector, Smoother(least=conf) if smooth else None, lines, view, writer, threshold, most)
        if view is not None:
            view.update(ended=True)
    (console if str(jsonl) != "-" else _quiet()).print(
        f"{totals['frames']} frames, {totals['detections']} detections, {totals['hard']} hard frames, "
        f"{totals['fps']:.1f} frames per second",
        markup=False,
    )


def _quiet() -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def _written(path: Path | None) -> Iterator[None]:
    """A disk that is full, or a folder that may not be written, as one line; nothing else is taken for that."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        where = error.filename or path
        raise DataError(f"cannot be written ({error.strerror})", where=where, remedy="Is the disk full?") from None


def _open(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror})", where=path) from None


def _loop(
    source: Any, detector: Any, smoother: Any, lines: Any, view: Any, writer: Any, threshold: float, most: int | None
) -> dict[str, Any]:
    from polypfed.detect.draw import annotate

    totals: dict[str, Any] = {"frames": 0, "detections": 0, "hard": 0, "fps": 0.0}
    recent: deque[float] = deque(maxlen=30)
    start = time.perf_counter()
    for frame in source.frames():
        begin = time.perf_counter()
        found = detector(frame.pixels)
        best = found.best
        shown = smoother(found) if smoother else found
        recent.append(time.perf_counter() - begin)
        fps = len(recent) / sum(recent)
        totals["frames"] += 1
        totals["detections"] += len(shown)
        totals["hard"] += best < threshold
        if lines is not None:
            lines.write(json.dumps(_row(frame, shown, best, detector.times)) + "\n")
        if view is not None or writer is not None:
            picture = annotate(frame.pixels, shown, threshold)
            if writer is not None:
                writer.add(picture, frame)
            if view is not None:
                view.show(picture, frame.number, len(shown), shown.best, fps)
        if totals["frames"] == most:
            break
    totals["fps"] = totals["frames"] / (time.perf_counter() - start)
    return totals


def _row(frame: Any, shown: Any, best: float, times: dict[str, float]) -> dict[str, Any]:
    boxes = [[round(float(v), 2) for v in box] for box in shown.xyxy]
    return {
        "frame": frame.number,
        "name": frame.name,
        "seconds": frame.seconds,
        "size": [frame.pixels.shape[1], frame.pixels.shape[0]],
        "best": round(best, 6),
        "boxes": [[*box, round(float(c), 6)] for box, c in zip(boxes, shown.confidence, strict=True)],
        "ms": {name: round(1e3 * s, 3) for name, s in times.items()},
    }


class _Writer:
    """Annotated pictures into a folder, or all of them into one video."""

    def __init__(self, out: Path, kind: str, threshold: float, fps: float = 25.0) -> None:
        self._video = out.suffix.lower() in (".mp4", ".avi", ".mkv")
        self._out, self._fps, self._size, self._count = out, fps, (0, 0), 0
        self._to: Any = None
        if out.exists() and not self._video and any(out.iterdir() if out.is_dir() else [out]):
            raise DataError("exists and is not empty", where=out, remedy="Choose another folder")

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._to is None:
            return
        readable = self._to.getBackendName() == "FFMPEG"  # the same decoder reads it
        self._to.release()
        if kind is None and readable and not self._whole():  # the encoder says nothing of a full disk
            raise DataError(f"does not hold all {self._count} frames", where=self._out, remedy="Is the disk full?")

    def _whole(self) -> bool:
        """The finished video has every frame, and the last one can be read."""
        import cv2

        film = cv2.VideoCapture(str(self._out), cv2.CAP_FFMPEG)
        if film.get(cv2.CAP_PROP_FRAME_COUNT) != self._count:
            return False
        film.set(cv2.CAP_PROP_POS_FRAMES, self._count - 1)
        return film.read()[0]

    def add(self, picture: Any, frame: Any) -> None:
        """One frame more. Frames of another size than the first are resized to it in a video."""
        import cv2

        if not self._video:
            path = (self._out / frame.name).with_suffix(".jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            if not cv2.imwrite(str(path), picture[..., ::-1]):
                raise DataError("cannot be written", where=path, remedy="Is the disk full?")
            return
        if self._to is None:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            self._size = (picture.shape[1], picture.shape[0])
            code = "mp4v" if self._out.suffix.lower() == ".mp4" else "MJPG"
            to: Any = cv2.VideoWriter(str(self._out), cv2.VideoWriter.fourcc(*code), self._fps, self._size)
            if not to.isOpened():
                raise DataError("no video can be written there", where=self._out, remedy="Use a folder or .avi")
            self._to = to
        if (picture.shape[1], picture.shape[0]) != self._size:
            picture = cv2.resize(picture, self._size)
        self._to.write(picture[..., ::-1])
        self._count += 1
