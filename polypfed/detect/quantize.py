"""Full-integer models on the device: ranges from a few of its own frames, scales and weights into a template.

Ranges are the minimum and maximum over all frames. The usual moving average (0.95 a frame) forgets the few frames in
which a level of the detector sees an object: the logits' maximum then falls to 0, no confidence exceeds 0.5, and a
filter below 0.7 keeps every frame. The input's range is pinned to [0, 1], so that a quantised pixel is `pixel ^ 0x80`.
Quantisation is that of LiteRT (Jacob et al., 2018): int8, asymmetric by tensor for activations, symmetric by channel
for weights, int32 biases.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import DataError
from polypfed.detect.patch import Arrays, Edit, assemble, channel_scales, check_shapes, flags, patch, round_weights
from polypfed.detect.runtime import interpreter
from polypfed.detect.template import Blank, Slot, Template
from polypfed.detect.tflite import ModelFileError, TFLite

Ranges = Mapping[str, tuple[float, float]]
Pixels = NDArray[np.uint8]
_INT8, _LOGISTIC, _MUL, _QUANTIZE = 9, 14, 18, 114
# Operators whose inputs and outputs have one scale: ADD, MUL, CONV_2D and LOGISTIC are not among them.
_SAME = {2: "CONCATENATION", 17: "MAX_POOL_2D", 22: "RESHAPE", 34: "PAD", 39: "TRANSPOSE", 45: "STRIDED_SLICE"}
_SAME |= {97: "RESIZE_NEAREST_NEIGHBOR"}
_PINNED = {"input": (np.float32(1 / 255), -128), "logistic": (np.float32(1 / 256), -128)}
_SURE, _ENOUGH, _MOST_SHIFT = -1.0, 8, 0.5  # logits
_LEAST_RATIO = 2.0**-30  # XNNPACK takes (input scale * weight scale / output scale) from 2^-32 to 256


def quantize(
    template: Template, arrays: Arrays, frames: Iterable[Pixels], *, threads: int = 1, npu: bool = False
) -> bytes:
    """The full-integer `.tflite` of a model: int8 in, int8 out.

    Args:
        arrays: as for `patch`.
        frames: 32 are enough, each (imgsz, imgsz, 3) uint8 RGB, letterboxed as the detector sees them; with 16, best
            confidences were found to differ from fp32's by a third more.
        threads: for running the float model over the frames.

    Raises:
        LayoutError, ModelFileError: as `patch`. DataError: no frames, or of another shape.
    """
    float_model, seen = patch(template, arrays), list(frames)
    ranges, logits = observe(float_model, seen, threads)
    shifted = shift_heads(template, arrays, logits, quantized(template, arrays, ranges), seen, threads)
    return quantized(template, shifted, ranges, npu=npu)


def calibrate(model: bytes, frames: Iterable[Pixels], threads: int = 1) -> dict[str, tuple[float, float]]:
    """The least and largest value of every activation that needs a range, by tensor name.

    Args:
        model: an fp32 `.tflite`. frames: as for `quantize`.
    """
    return observe(model, frames, threads)[0]


def observe(
    model: bytes, frames: Iterable[Pixels], threads: int = 1
) -> tuple[dict[str, tuple[float, float]], list[NDArray[np.float32]]]:
    """What `calibrate` gives, and the logits of the score heads, (frames, cells) each.

    The float model is run with these activations as additional outputs, which keeps the optimised kernels: an
    interpreter that preserves all tensors takes three to four times as long.
    """
    graph = TFLite(model)
    free = _SAME.keys() | {_LOGISTIC}
    wanted = [i for o in graph.operators if o.code not in free for i in o.outputs]
    heads = _score_heads(graph)
    runner = interpreter(graph.with_outputs(wanted), threads)
    place, shape = graph.inputs[0], graph.tensors[graph.inputs[0]].shape[1:]
    low, high = np.full(len(wanted), np.inf), np.full(len(wanted), -np.inf)
    rows: list[list[NDArray[np.float32]]] = [[] for _ in heads]
    for frame in frames:
        if frame.shape != shape or frame.dtype != np.uint8:
            raise DataError(f"a frame is {frame.dtype}{frame.shape}, the model takes uint8{shape}", where="frames")
        runner.set_tensor(place, frame[None].astype(np.float32) / np.float32(255))
        runner.invoke()
        for number, index in enumerate(wanted):
            values = runner.tensor(index)()
            low[number], high[number] = min(low[number], values.min()), max(high[number], values.max())
            del values  # a view that lives on forbids the next invoke
        for row, index in zip(rows, heads.values(), strict=True):
            row.append(runner.get_tensor(index).ravel())
    if not np.isfinite(low).all() or not np.isfinite(high).all():
        if np.isposinf(low).all():
            raise DataError("there are none to calibrate on", where="frames")
        raise DataError("the model gives values that are not finite", where="model")
    ranges = {graph.tensors[i].name: (float(a), float(b)) for i, a, b in zip(wanted, low, high, strict=True)}
    return ranges, [np.stack(row) for row in rows]


def quantized(template: Template, arrays: Arrays, ranges: Ranges, *, npu: bool = False) -> bytes:
    """The full-integer `.tflite` with the given ranges of activations.

    Raises:
        LayoutError, ModelFileError: as `patch`; also if a tensor's range is missing.
    """
    blank = template.blank("int8")
    check_shapes(blank, arrays)
    scales = _activations(blank, ranges)
    edits: list[Edit] = flags(blank, npu)
    for index, (scale, zero) in scales.items():
        tensor = blank.graph.tensors[index]
        if tensor.scale is None or tensor.zero_point is None:
            raise ModelFileError(f"{tensor.name!r} has no place for a scale", where=template.where)
        edits += [(tensor.scale, np.array([scale], "<f4")), (tensor.zero_point, np.array([zero], "<i8"))]
    for slot in blank.slots:
        edits += _layer(slot, arrays, scales[slot.operator.inputs[0]][0], scales[slot.operator.outputs[0]][0])
    return assemble(blank, edits)


def shift_heads(
    template: Template,
    arrays: Arrays,
    logits: Sequence[NDArray[np.float32]],
    model: bytes,
    frames: Iterable[Pixels],
    threads: int = 1,
) -> Arrays:
    """The arrays with the biases of the score heads corrected for what quantisation does to confident cells.

    Rounding through sixty layers makes sure cells a little less sure, all of them alike. The mean difference of the
    logits of fp32 and int8, over the cells that fp32 gives at least 0.27, is added to the bias (bias correction, Nagel
    et al., 2019, on the one layer where it decides). Levels with fewer than 8 such cells stay as they are.

    Args:
        logits: fp32's, as `observe` gives them for `frames`. model: the int8 file of the same arrays.
    """
    layers = [template.layers[k] for k in _score_heads(template.blank("fp32").graph)]
    changed = dict(arrays)
    for layer, wanted, got in zip(layers, logits, _int8_logits(model, frames, threads), strict=True):
        sure = wanted > _SURE
        if sure.sum() >= _ENOUGH and not layer.norm:
            shift = np.clip((wanted - got)[sure].mean(), -_MOST_SHIFT, _MOST_SHIFT)
            changed[f"{layer.name}.bias"] = arrays[f"{layer.name}.bias"] + np.float32(shift)
    return changed


def _score_heads(graph: TFLite) -> dict[int, int]:
    """The convolutions that lead into a sigmoid that is an output: their number in the file -> their output tensor."""
    into = {o.inputs[0] for o in graph.operators if o.code == _LOGISTIC and o.outputs[0] in graph.outputs}
    nodes = enumerate(o for o in graph.operators if o.code == 3)
    return {k: o.outputs[0] for k, o in nodes if o.outputs[0] in into}


def _int8_logits(model: bytes, frames: Iterable[Pixels], threads: int) -> list[NDArray[np.float32]]:
    """(frames, cells) of every score head of an int8 file, before the sigmoid."""
    graph = TFLite(model)
    places = list(_score_heads(graph).values())
    runner = interpreter(graph.with_outputs(places), threads)
    rows: list[list[NDArray[np.float32]]] = [[] for _ in places]
    for frame in frames:
        runner.set_tensor(graph.inputs[0], (frame ^ 0x80).view(np.int8)[None])
        runner.invoke()
        for row, place in zip(rows, places, strict=True):
            values = runner.get_tensor(place).ravel().astype(np.float32)
            row.append((values - graph.zero_point(place)) * graph.scale(place))
    return [np.stack(row) for row in rows]


def _layer(slot: Slot, arrays: Arrays, before: np.float32, after: np.float32) -> list[Edit]:
    weight, bias = slot.layer.fold(arrays)
    # Dead channels: a scale so small that the bias leaves int32, or that the kernels refuse, is raised.
    least = np.maximum(np.abs(bias) / (np.float64(before) * 2**30), np.float64(after) / before * _LEAST_RATIO)
    scales = channel_scales(weight, least)
    wide = np.float64(before) * scales
    if slot.scale is None or slot.bias_scale is None:
        raise ModelFileError("holds no scales", where=slot.layer.weight)
    return [
        (slot.weight, round_weights(weight, scales)),
        (slot.scale, scales),
        (slot.bias, np.rint(bias / wide).astype("<i4")),
        (slot.bias_scale, wide.astype("<f4")),
    ]


def _activations(blank: Blank, ranges: Ranges) -> dict[int, tuple[np.float32, int]]:
    """(scale, zero point) of every int8 activation, by tensor number."""
    graph = blank.graph
    constants = {i for o in graph.operators if o.code == 3 for i in o.inputs[1:]}
    active = [i for i, t in enumerate(graph.tensors) if t.type == _INT8 and t.data is None and i not in constants]
    groups = _tied(graph, set(active))
    spans: dict[int, tuple[float, float]] = {}
    for i in active:
        low, high = ranges.get(graph.tensors[i].name, (0.0, 0.0))
        least, most = spans.get(groups[i], (0.0, 0.0))
        spans[groups[i]] = (min(least, low), max(most, high))
    for i, (low, high) in _useful(graph).items():
        if i in groups:
            least, most = spans[groups[i]]
            spans[groups[i]] = (max(least, low), min(most, high))
    pinned = {groups[i]: _PINNED["input"] for i in graph.inputs if i in groups}
    pinned |= {groups[i]: _PINNED["logistic"] for o in graph.operators if o.code == _LOGISTIC for i in o.outputs}
    known = {groups[i] for i in active if graph.tensors[i].name in ranges}
    for i in active:
        if groups[i] not in known | pinned.keys():
            raise ModelFileError("the range of an activation is not known", where=graph.tensors[i].name)
    return {i: pinned.get(groups[i]) or _affine(*spans[groups[i]]) for i in active}


def _useful(graph: TFLite) -> dict[int, tuple[float, float]]:
    """Bounds beyond which values in front of a sigmoid make no difference, by tensor number.

    On the sigmoid's grid of 1/256 everything below -6.3 is 0 and above 6.3 the largest value, and x * sigmoid(x) is 0
    with it. Logits reach far below that, so the steps of what matters get finer by up to a half, at no loss.
    """
    readers: dict[int, set[int]] = {}
    for operator in graph.operators:
        for i in operator.inputs:
            readers.setdefault(i, set()).add(operator.code)
    bounds = {frozenset({_LOGISTIC}): (-7.0, 7.0), frozenset({_LOGISTIC, _MUL}): (-7.0, np.inf)}
    return {i: bounds[key] for i, codes in readers.items() if (key := frozenset(codes)) in bounds}


def _tied(graph: TFLite, active: set[int]) -> dict[int, int]:
    """Tensors that must have one scale, as the number of one of them."""
    root = {i: i for i in active}

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    for operator in graph.operators:
        if operator.code in _SAME:
            first, *others = (i for i in (*operator.outputs, *operator.inputs) if i in active)
            for other in others:
                root[find(other)] = find(first)
        elif operator.code not in _FREE:
            raise ModelFileError(f"{operator.name} cannot be quantised on the device", where=graph.where)
    return {i: find(i) for i in active}


_FREE = {0, 3, _LOGISTIC, _MUL, 19, _QUANTIZE}  # ADD, CONV_2D, LOGISTIC, MUL, RELU, QUANTIZE


def _affine(low: float, high: float) -> tuple[np.float32, int]:
    """Scale and zero point of int8 for [low, high], which holds 0 exactly."""
    scale = np.float32(max(high - low, 1e-6) / 255)
    return scale, int(np.clip(np.rint(-128 - low / scale), -128, 127))
