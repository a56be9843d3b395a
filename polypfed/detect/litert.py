"""The lean detector of a device: LiteRT, NumPy and OpenCV; no torch in the process.

A frame is resized straight into one square that is kept, quantised by an exclusive or, and run; scores are compared as
integers, and only cells above the threshold are decoded.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import ConfigError
from polypfed.core.extras import require
from polypfed.detect.detections import Detections
from polypfed.detect.heads import BINS, CANDIDATES, Level, suppress
from polypfed.detect.letterbox import GREY, Placement
from polypfed.detect.runtime import Delegate, interpreter
from polypfed.detect.tflite import ModelFileError

Pixels = NDArray[np.uint8]
Resize = Literal["area", "linear"]
Times = dict[str, float]


class Letterbox:
    """Frames into one square on grey that is reused.

    Args:
        imgsz: its side.
        resize: "area" averages, as the detector does in training; while a frame is at least four times too large it is
            halved first, which is many times quicker and for powers of two the same within one level. "linear" is
            what ultralytics does.
    """

    def __init__(self, imgsz: int, resize: Resize = "area") -> None:
        if resize not in ("area", "linear"):
            raise ConfigError(f"{resize!r} is not a way to resize", where="resize", remedy="Use area or linear")
        self._cv2 = require("cv2", extra="edge")
        self.imgsz, self.resize = imgsz, resize
        self.square: Pixels = np.full((imgsz, imgsz, 3), GREY, np.uint8)
        self._shape: tuple[int, ...] = ()
        self._place = Placement((1.0, 1.0), (0, 0), (imgsz, imgsz))

    def __call__(self, image: Pixels) -> Placement:
        """Draw `image`, (h, w, 3) uint8, into `self.square`.

        Raises:
            ConfigError: it has another shape or type.
        """
        if image.shape != self._shape:
            self._prepare(image)
        (left, top), (width, height) = self._place.offset, self._inner
        inside = self.square[top : top + height, left : left + width]
        if image.shape[:2] == (height, width):
            np.copyto(inside, image)
            return self._place
        made = self._shrunk(image, (width, height), inside)
        if not np.shares_memory(made, inside):
            np.copyto(inside, made)
        return self._place

    def _shrunk(self, image: Pixels, size: tuple[int, int], out: Pixels) -> Pixels:
        cv2 = self._cv2
        if self.resize == "linear" or size[0] > image.shape[1] or size[1] > image.shape[0]:
            made: Pixels = cv2.resize(image, size, dst=out, interpolation=cv2.INTER_LINEAR)
            return made
        while not (image.shape[0] % 2 or image.shape[1] % 2) and max(image.shape) >= 4 * self.imgsz:
            half = (image.shape[1] // 2, image.shape[0] // 2)
            image = cv2.resize(image, half, interpolation=cv2.INTER_AREA)
        averaged: Pixels = cv2.resize(image, size, dst=out, interpolation=cv2.INTER_AREA)
        return averaged

    def _prepare(self, image: Pixels) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ConfigError(f"a frame is (h, w, 3) uint8, not {image.dtype}{image.shape}", where="frame")
        height, width = image.shape[:2]
        ratio = self.imgsz / max(height, width)
        inner = tuple(max(1, min(round(side * ratio), self.imgsz)) for side in (width, height))
        spare = (self.imgsz - inner[0], self.imgsz - inner[1])
        left, top = (_before(s, self.resize) for s in spare)
        self._inner = (inner[0], inner[1])
        self._place = Placement((inner[0] / width, inner[1] / height), (left, top), (width, height))
        self._shape = image.shape
        self.square[...] = GREY  # or pixels of the last geometry would stay in the border


def _before(spare: int, resize: Resize) -> int:
    return round(spare / 2 - 0.1) if resize == "linear" else spare // 2  # ultralytics' rounding of odd borders


class LiteRTDetector:
    """A `.tflite` with raw heads, ready to be called on frames. One thread at a time may use it.

    Args:
        model: the file, or its bytes.
        threads: of the interpreter.
        delegate: an external delegate. resize: see `Letterbox`.
        conf: least confidence of a detection. iou: overlap above which the weaker of two goes.
        candidates: the best cells that are decoded; None for all, which average precision at a confidence of 0.001
            wants.

    Attributes:
        imgsz: side of its square. precision: "int8" or "float" input.
        times: seconds of the last call, by "before", "invoke" and "after".

    Raises:
        ModelFileError: damaged, or not a detector with raw heads.
        ConfigError: the delegate cannot be used. MissingExtraError: no runtime, or no OpenCV.

    Examples:
        detector = LiteRTDetector("yolov5n-320-int8.tflite", threads=2)
        found = detector(frame)  # (h, w, 3) uint8 RGB -> Detections in pixels of the frame
    """

    def __init__(
        self,
        model: str | Path | bytes,
        threads: int = 1,
        delegate: Delegate | None = None,
        conf: float = 0.25,
        iou: float = 0.7,
        candidates: int | None = CANDIDATES,
        resize: Resize = "area",
    ) -> None:
        for name, value in (("conf", conf), ("iou", iou)):
            if not 0 < value <= 1:
                raise ConfigError(f"must lie above 0 and at most at 1, got {value!r}", where=name)
        if threads < 1:
            raise ConfigError(f"must be at least 1, got {threads}", where="threads")
        self.conf, self.iou, self._most, self.threads = conf, iou, candidates, threads
        data, where = (model, "model") if isinstance(model, bytes) else (_read(Path(model)), str(model))
        self._runner = interpreter(data, threads, delegate, where)
        (self._input,) = self._runner.get_input_details()
        self.levels = _levels(self._input, self._runner.get_output_details(), where)
        self.imgsz = int(self._input["shape"][1])
        self.letterbox = Letterbox(self.imgsz, resize)
        self.precision = "int8" if self._input["dtype"] == np.int8 else "float"
        self._table = _table(self._input)
        self._input_view = self._runner.tensor(self._input["index"])
        self.times: Times = {}

    def __call__(self, image: Pixels) -> Detections:
        """Detect in one frame, (h, w, 3) uint8 RGB; boxes in its pixels."""
        start = time.perf_counter()
        place = self.letterbox(image)
        self._load()
        ready = time.perf_counter()
        self._runner.invoke()
        ran = time.perf_counter()
        found = self._read_out(place)
        self.times = {"before": ready - start, "invoke": ran - ready, "after": time.perf_counter() - ran}
        return found

    def detect(self, images: Sequence[Pixels]) -> list[Detections]:
        """One `Detections` per image, as `yolo.predict` gives them."""
        return [self(image) for image in images]

    def invoke(self) -> None:
        """Run the network on what was loaded last: the bare cost, for benchmarks."""
        self._runner.invoke()

    def raw(self, square: Pixels) -> list[NDArray[np.float32]]:
        """The raw heads of an (imgsz, imgsz, 3) uint8 square, as floats, boxes and scores by level: for comparisons."""
        np.copyto(self.letterbox.square, square)
        self._load()
        self.letterbox._shape = ()  # its border is no longer grey
        self._runner.invoke()
        out = []
        for level in self.levels:
            for index, (scale, zero) in ((level.boxes, level.box_scale), (level.scores, level.score_scale)):
                values = self._runner.get_tensor(index).astype(np.float32)
                out.append((values - np.float32(zero)) * np.float32(scale))
        return out

    def _load(self) -> None:
        target = self._input_view()[0]
        if self._table is None:
            np.bitwise_xor(self.letterbox.square, 0x80, out=target.view(np.uint8))
        elif self.precision == "float":
            np.multiply(self.letterbox.square, np.float32(1 / 255), out=target)
        else:
            np.take(self._table, self.letterbox.square, out=target)

    def _read_out(self, place: Placement) -> Detections:
        boxes: list[NDArray[np.float32]] = []
        scores: list[NDArray[np.float32]] = []
        for level in self.levels:
            cells, confidence = level.candidates(self._runner.get_tensor(level.scores), self.conf)
            if len(cells):
                if self._most is not None and len(cells) > self._most:
                    best = np.sort(np.argsort(-confidence, kind="stable")[: self._most])
                    cells, confidence = cells[best], confidence[best]
                boxes.append(level.decode(self._runner.tensor(level.boxes)(), cells))
                scores.append(confidence)
        if not boxes:
            return Detections()
        xyxy, confidence = np.concatenate(boxes), np.concatenate(scores)
        if self._most is not None and len(xyxy) > self._most:
            best = np.argsort(-confidence, kind="stable")[: self._most]
            xyxy, confidence = xyxy[best], confidence[best]
        kept = suppress(xyxy, confidence, self.iou)
        return Detections(place.back(xyxy[kept]), confidence[kept])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot be read ({error.strerror})", where=path) from None


def _table(details: dict[str, Any]) -> NDArray[np.int8] | None:
    """What a pixel becomes in the input; None where that is `pixel ^ 0x80`. Unused for float inputs."""
    if details["dtype"] != np.int8:
        return np.zeros(0, np.int8)
    scale, zero = details["quantization"]
    levels = np.arange(256, dtype=np.float64) / 255
    table = np.clip(np.rint(levels / scale) + zero, -128, 127).astype(np.int8)
    plain = (np.arange(256, dtype=np.uint8) ^ 0x80).view(np.int8)
    return None if (table == plain).all() else table


def _levels(given: dict[str, Any], outputs: list[dict[str, Any]], where: str) -> list[Level]:
    """Pair the outputs by their grids, finest first."""
    shape = tuple(int(n) for n in given["shape"])
    if len(shape) != 4 or shape[0] != 1 or shape[1] != shape[2] or shape[3] != 3:
        raise ModelFileError(f"takes {shape}, not one square RGB frame (1, s, s, 3)", where=where)
    if any(d["dtype"] not in (np.float32, np.int8) for d in [given, *outputs]):
        raise ModelFileError("has inputs or outputs that are neither float32 nor int8", where=where)
    grids: dict[tuple[int, int], dict[bool, dict[str, Any]]] = {}
    for details in outputs:
        _, height, width, channels = (*details["shape"], 0, 0, 0, 0)[:4]
        grids.setdefault((int(height), int(width)), {})[channels == 4 * BINS] = details
    if not grids or any(set(pair) != {True, False} for pair in grids.values()):
        raise ModelFileError(
            "does not have the raw heads of a detector as outputs", where=where, remedy="Export it with polypfed export"
        )
    return [_level(shape[1], grid, pair) for grid, pair in sorted(grids.items(), reverse=True)]


def _level(imgsz: int, grid: tuple[int, int], pair: dict[bool, dict[str, Any]]) -> Level:
    boxes, scores = pair[True], pair[False]
    scales = [d["quantization"] if d["dtype"] == np.int8 else (1.0, 0) for d in (boxes, scores)]
    return Level(boxes["index"], scores["index"], imgsz // grid[0], grid[1], scales[0], scales[1])
