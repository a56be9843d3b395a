"""A new global model on a device: fill it in, quantise, compare with fp32, and fall back where it decides otherwise."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polypfed.core.errors import ConfigError, DataError, PolypfedError
from polypfed.detect.agreement import Agreement, Limits, compare
from polypfed.detect.litert import Letterbox, LiteRTDetector, Resize
from polypfed.detect.patch import Arrays, patch
from polypfed.detect.quantize import quantize
from polypfed.detect.runtime import Delegate
from polypfed.detect.template import Precision, Template

_LOG = logging.getLogger(__name__)
ORDER: tuple[Precision, ...] = ("int8", "dynamic", "fp16", "fp32")
_LEAST = 0.001
_CALIBRATION = 32

Frames = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class Adapted:
    """The model that may serve.

    Attributes:
        model: the `.tflite`. precision: of it.
        agreement: with fp32; None for fp32 itself.
        refused: why each precision tried before it did not pass.
    """

    model: bytes = field(repr=False)
    precision: Precision
    agreement: Agreement | None
    refused: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        lost = "".join(f"; not {name}: {why}" for name, why in self.refused)
        return f"{self.precision}{lost}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the history and the release."""
        gate = self.agreement.as_dict() if self.agreement else None
        return {"precision": self.precision, "gate": gate, "refused": dict(self.refused)}


def adapt(
    template: Template,
    arrays: Arrays,
    frames: Frames,
    *,
    threshold: float = 0.7,
    order: Sequence[Precision] = ORDER,
    limits: Limits | None = None,
    true: Sequence[ArrayLike] | None = None,
    calibration: Frames | None = None,
    threads: int = 1,
    delegate: Delegate | None = None,
    resize: Resize = "area",
    npu: bool = False,
) -> Adapted:
    """The first precision of `order` that decides as fp32 does on this device's own frames.

    Args:
        arrays: the global model, as for `patch`.
        frames: any size, (h, w, 3) uint8 RGB, to compare on; some hundred.
        threshold: the selector's. limits: what must be kept. true: boxes of `frames`, if they are known.
        calibration: frames for int8 that are not among `frames`; by default every so many of `frames` is taken out.
        delegate: candidates run on it, fp32 on the processor: a delegate that gives other boxes does not pass.

    Raises:
        DataError: too few frames. Others as `patch`.
    """
    if calibration is None:
        frames, calibration, true = _divide(frames, true)
    if not order or not len(frames):
        raise DataError("frames and at least one precision are needed to choose a model", where="adapt")
    if unknown := set(order) - set(ORDER):
        raise ConfigError(f"no such precision: {', '.join(sorted(unknown))}", where="order")
    float_model = patch(template, arrays, npu=npu)
    reference = _answers(float_model, frames, threads, None, resize)
    refused: list[tuple[str, str]] = []
    for precision in order:
        if precision == "fp32" and delegate is None:
            return Adapted(float_model, "fp32", None, tuple(refused))
        try:
            model = _make(template, arrays, precision, float_model, calibration, threads, resize, npu)
            seen = compare(reference, _answers(model, frames, threads, delegate, resize), threshold, true)
            failures = seen.failures(limits or Limits())
        except PolypfedError as error:  # a template without this precision, weights too large for half precision
            failures = [str(error)]
        else:
            if not failures:
                return Adapted(model, precision, seen, tuple(refused))
        refused.append((precision, "; ".join(failures)))
        _LOG.warning("%s does not serve: %s", precision, refused[-1][1])
    return Adapted(float_model, "fp32", None, tuple(refused))


def letterboxed(frames: Frames, imgsz: int, resize: Resize = "area") -> list[NDArray[np.uint8]]:
    """Each frame as (imgsz, imgsz, 3) uint8, as the detector sees it."""
    box, out = Letterbox(imgsz, resize), []
    for frame in frames:
        box(frame)
        out.append(box.square.copy())
    return out


def _make(
    template: Template,
    arrays: Arrays,
    precision: Precision,
    float_model: bytes,
    calibration: Frames,
    threads: int,
    resize: Resize,
    npu: bool,
) -> bytes:
    if precision == "fp32":
        return float_model
    if precision != "int8":
        return patch(template, arrays, precision, npu=npu)
    seen = letterboxed(calibration, template.manifest.imgsz, resize)
    return quantize(template, arrays, seen, threads=threads, npu=npu)


def _answers(model: bytes, frames: Frames, threads: int, delegate: Delegate | None, resize: Resize) -> list[Any]:
    return LiteRTDetector(model, threads, delegate, conf=_LEAST, resize=resize).detect(frames)


def _divide(frames: Frames, true: Sequence[ArrayLike] | None) -> tuple[Frames, Frames, Sequence[ArrayLike] | None]:
    """Take every so many frames out for calibration: at most 32, and never more than a third."""
    step = max(3, len(frames) // _CALIBRATION)
    taken = (
        set(range(0, len(frames), step)) if len(frames) < 3 * _CALIBRATION else set(range(0, _CALIBRATION * step, step))
    )
    rest = [i for i in range(len(frames)) if i not in taken]
    kept = None if true is None else [true[i] for i in rest]
    return [frames[i] for i in rest], [frames[i] for i in sorted(taken)], kept
