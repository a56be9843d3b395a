"""A new global model into a template's `.tflite`: NumPy and some milliseconds instead of a converter.

Files are changed in place and never packed anew, so that every offset stays what it was. The new file is joined from
the template's bytes and the new arrays at once: copying ten megabytes a second time costs more than all arithmetic.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import ConfigError, LayoutError
from polypfed.detect.fold import Floats
from polypfed.detect.template import Blank, Precision, Slot, Template
from polypfed.detect.tflite import ModelFileError, Span

Arrays = Mapping[str, Floats]
Edit = tuple[Span, NDArray[Any]]


def patch(template: Template, arrays: Arrays, precision: Precision = "fp32", *, npu: bool = False) -> bytes:
    """The `.tflite` of a model.

    Args:
        arrays: name -> float32 array, as `ModelSpec.views` gives them; weights and BatchNorm statistics.
        precision: "fp32", "fp16" (weights in half precision) or "dynamic" (int8 weights, float activations). For
            "int8" see `polypfed.detect.quantize`, which needs frames.
        npu: clear the half-pixel flag of nearest-neighbour resizing, which some NPU drivers refuse. For the twofold
            enlargement of YOLO it changes no value.

    Raises:
        LayoutError: the arrays are those of another architecture, or hold values that are not finite.
        ModelFileError: the template lacks this precision, or is damaged.
    """
    if precision == "int8":
        raise ConfigError("int8 needs frames to calibrate on", where="precision", remedy="Use quantize()")
    blank, write = template.blank(precision), _WRITERS[precision]
    check_shapes(blank, arrays)
    edits = [edit for slot in blank.slots for edit in write(slot, arrays)]
    return assemble(blank, [*edits, *flags(blank, npu)])


def flags(blank: Blank, npu: bool) -> list[Edit]:
    """The half-pixel flags, cleared."""
    return [(Span(place, 1), np.zeros(1, np.uint8)) for place in blank.graph.half_pixel_flags()] if npu else []


def assemble(blank: Blank, edits: list[Edit]) -> bytes:
    """The template's file with the arrays of `edits` in their places.

    Raises:
        ModelFileError: an array has another length than its place, or two places overlap.
    """
    parts: list[memoryview] = []
    source, at = memoryview(blank.data), 0
    for span, array in sorted(edits, key=lambda edit: edit[0].offset):
        if span.length != array.nbytes or span.offset < at:
            raise ModelFileError(f"a constant of {span.length} bytes cannot take {array.nbytes}")
        parts += [source[at : span.offset], np.ascontiguousarray(array).reshape(-1).view(np.uint8).data]
        at = span.stop
    return b"".join([*parts, source[at:]])


def check_shapes(blank: Blank, arrays: Arrays) -> None:
    """Raise a LayoutError unless every convolution has its array, of the template's shape, and none is left over."""
    for slot in blank.slots:
        array, (out, h, w, deep) = arrays.get(slot.layer.weight), slot.shape
        if array is None or array.shape != (out, deep, h, w):
            found = "is missing" if array is None else f"has shape {array.shape}"
            raise LayoutError(
                f"{found}; the template wants {(out, deep, h, w)}",
                where=slot.layer.weight,
                remedy="The template is of another architecture, or the model was fused: use the live, unfused one",
            )
    kernels = {name for name, a in arrays.items() if a.ndim == 4 and not name.endswith("dfl.conv.weight")}
    if more := sorted(kernels - {slot.layer.weight for slot in blank.slots}):
        raise LayoutError("has no place in the template", where=more[0], remedy="It is of another architecture")


def channel_scales(weight: Floats, least: NDArray[np.floating] | float = 0.0) -> NDArray[np.float32]:
    """(out,) float32, symmetric int8 over each output channel: the largest magnitude at 127, and never 0."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scales: NDArray[np.float32] = np.maximum(np.maximum(largest / np.float32(127), least), 1e-12).astype(np.float32)
    return scales


def round_weights(weight: Floats, scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """(out, h, w, in) int8 in [-127, 127]."""
    whole = weight * (np.float32(1) / scales)[:, None, None, None]
    rounded: NDArray[np.int8] = np.clip(np.rint(whole), -127, 127).astype(np.int8)
    return rounded


def _fp32(slot: Slot, arrays: Arrays) -> list[Edit]:
    weight, bias = slot.layer.fold(arrays)
    return [(slot.weight, weight), (slot.bias, bias)]


def _fp16(slot: Slot, arrays: Arrays) -> list[Edit]:
    weight, bias = slot.layer.fold(arrays)
    if np.abs(weight).max(initial=0) > np.finfo(np.float16).max:
        raise LayoutError("has values too large for half precision", where=slot.layer.weight)
    narrow = slot.bias.length == 2 * len(bias)
    return [(slot.weight, weight.astype("<f2")), (slot.bias, bias.astype("<f2") if narrow else bias)]


def _dynamic(slot: Slot, arrays: Arrays) -> list[Edit]:
    weight, bias = slot.layer.fold(arrays)
    scales = channel_scales(weight)
    if slot.scale is None:
        raise ModelFileError("holds no scales", where=slot.layer.weight)
    return [(slot.weight, round_weights(weight, scales)), (slot.scale, scales), (slot.bias, bias)]


_WRITERS = {"fp32": _fp32, "fp16": _fp16, "dynamic": _dynamic}
