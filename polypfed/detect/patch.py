"""A new global model into a template's `.tflite`: NumPy and some milliseconds instead of a converter.

Files are changed in place and never packed anew, so that every offset stays what it was.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import ConfigError, LayoutError
from polypfed.detect.fold import Floats
from polypfed.detect.template import Blank, Precision, Slot, Template
from polypfed.detect.tflite import ModelFileError, Span

Arrays = Mapping[str, Floats]


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
    data = bytearray(blank.data)
    for slot in blank.slots:
        write(data, slot, arrays)
    finish(data, blank, npu)
    return bytes(data)


def finish(data: bytearray, blank: Blank, npu: bool) -> None:
    """What all precisions have in common after their weights are in."""
    if npu:
        for place in blank.graph.half_pixel_flags():
            data[place] = 0


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


def view(data: bytearray, span: Span, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """A writable view of a span.

    Raises:
        ModelFileError: the span has another length.
    """
    kind = np.dtype(dtype)
    if span.length != kind.itemsize * int(np.prod(shape)):
        raise ModelFileError(f"a constant has {span.length} bytes, not those of {dtype}{shape}")
    return np.frombuffer(data, kind, span.length // kind.itemsize, span.offset).reshape(shape)


def store(data: bytearray, span: Span, values: NDArray[np.generic], dtype: str) -> None:
    """Write `values`, converted to `dtype`, over a span."""
    np.copyto(view(data, span, dtype, values.shape), values, casting="unsafe")


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


def _fp32(data: bytearray, slot: Slot, arrays: Arrays) -> None:
    place = view(data, slot.weight, "<f4", slot.shape)
    _, bias = slot.layer.fold(arrays, out=place)  # type: ignore[arg-type]  # float32 by its dtype
    store(data, slot.bias, bias, "<f4")


def _fp16(data: bytearray, slot: Slot, arrays: Arrays) -> None:
    weight, bias = slot.layer.fold(arrays)
    if np.abs(weight).max(initial=0) > np.finfo(np.float16).max:
        raise LayoutError("has values too large for half precision", where=slot.layer.weight)
    store(data, slot.weight, weight, "<f2")
    store(data, slot.bias, bias, "<f2" if slot.bias.length == 2 * len(bias) else "<f4")


def _dynamic(data: bytearray, slot: Slot, arrays: Arrays) -> None:
    weight, bias = slot.layer.fold(arrays)
    scales = channel_scales(weight)
    if slot.scale is None:
        raise ModelFileError("holds no scales", where=slot.layer.weight)
    store(data, slot.weight, round_weights(weight, scales), "i1")
    store(data, slot.scale, scales, "<f4")
    store(data, slot.bias, bias, "<f4")


_WRITERS = {"fp32": _fp32, "fp16": _fp16, "dynamic": _dynamic}
