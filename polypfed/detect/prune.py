"""Structured pruning of a YOLOv5: whole channels go, and what is left is the same architecture with a smaller width.

A channel's importance is the L1 norm of its filter times its BatchNorm scale, |gamma| / sqrt(var + eps) (Li et al.,
2017, Pruning Filters for Efficient ConvNets; Liu et al., 2017, Network Slimming). Each layer keeps as many as the
narrower architecture has, so that every site can build it from its name. A choice of channels is carried to all that
read them: through residual sums, which share one choice, concatenations, pooling and enlargement, to the heads.

Differs: Liu et al. rank channels over all layers; here every layer keeps its share, for the shapes to be those of a
width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polypfed.core.errors import LayoutError
from polypfed.detect import yolo
from polypfed.detect.fold import Floats

Channels = NDArray[np.intp]


def prune(arrays: Mapping[str, Floats], arch: str, target: str) -> dict[str, Floats]:
    """A model of `arch` cut down to `target`.

    Args:
        arrays: of the live, unfused model by name, as `ModelSpec.views` gives them.
        arch, target: such as "yolov5n" and "yolov5n-0.75".

    Returns:
        Those of the narrower model, under the same names.

    Raises:
        ConfigError: unknown architecture. LayoutError: the model is not of `arch`, or `target` is not narrower.
    """
    wide, narrow = yolo.build(arch).eval(), yolo.build(target).eval()
    given = {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}
    own = {name: t.shape for name, t in wide.state_dict().items() if t.is_floating_point()}
    if {name: t.shape for name, t in given.items()} != {n: s for n, s in own.items() if n in given}:
        raise LayoutError(f"is not the layout of {arch}", where="model")
    wide.load_state_dict(given, strict=False)
    with torch.no_grad():
        _cut(wide, narrow)
    return {n: t.numpy().copy() for n, t in narrow.state_dict().items() if n in given}


def _cut(wide: Any, narrow: Any) -> None:
    kept: list[Channels] = []
    widths: list[int] = []
    last: tuple[Channels, int] = (np.arange(3), 3)
    for old, new in zip(wide.model, narrow.model, strict=True):
        sources = [old.f] if isinstance(old.f, int) else old.f
        given = [last if j == -1 else (kept[j], widths[j]) for j in sources]
        if type(old).__name__ == "Detect":
            _heads(old, new, [chosen for chosen, _ in given])
            return
        last = _layer(old, new, given)
        kept.append(last[0])
        widths.append(last[1])


def _layer(old: Any, new: Any, given: Sequence[tuple[Channels, int]]) -> tuple[Channels, int]:
    """What a layer's output keeps, and how many channels it had."""
    kind, (into, width) = type(old).__name__, given[0]
    if kind == "Conv":
        return _conv(old, new, into), len(old.conv.weight)
    if kind == "C3":
        return _c3(old, new, into), len(old.cv3.conv.weight)
    if kind == "SPPF":
        first, count = _conv(old.cv1, new.cv1, into), len(old.cv1.conv.weight)
        return _conv(old.cv2, new.cv2, _joined([(first, count)] * 4)), len(old.cv2.conv.weight)
    if kind == "Concat":
        return _joined(given), sum(count for _, count in given)
    if kind == "Upsample":
        return into, width
    raise LayoutError(f"a layer of kind {kind} cannot be pruned", where="model")


def _joined(given: Sequence[tuple[Channels, int]]) -> Channels:
    starts = np.cumsum([0, *(count for _, count in given)])
    return np.concatenate([chosen + start for (chosen, _), start in zip(given, starts, strict=False)])


def _c3(old: Any, new: Any, into: Channels) -> Channels:
    residual = all(block.add for block in old.m)
    shared: Channels | None = None
    if residual:  # the sum reads channel by channel: one choice for all that are added
        total = _importance(old.cv1, into) + sum(_importance(block.cv2) for block in old.m)
        shared = _largest(total, len(new.cv1.conv.weight))
    chosen = _conv(old.cv1, new.cv1, into, shared)
    for before, after in zip(old.m, new.m, strict=True):
        inner = _conv(before.cv1, after.cv1, chosen)
        chosen = _conv(before.cv2, after.cv2, inner, shared)
    beside = _conv(old.cv2, new.cv2, into)
    count = len(old.cv1.conv.weight)
    return _conv(old.cv3, new.cv3, _joined([(chosen, count), (beside, len(old.cv2.conv.weight))]))


def _heads(old: Any, new: Any, given: Sequence[Channels]) -> None:
    for name in ("cv2", "cv3"):
        for before, after, into in zip(getattr(old, name), getattr(new, name), given, strict=True):
            first = _conv(before[0], after[0], into)
            second = _conv(before[1], after[1], first)
            after[2].weight.copy_(before[2].weight[:, second])
            after[2].bias.copy_(before[2].bias)


def _conv(old: Any, new: Any, into: Channels, out: Channels | None = None) -> Channels:
    """Fill `new` with the most important channels of `old`, or those of `out`."""
    if out is None:
        out = _largest(_importance(old, into), len(new.conv.weight))
    new.conv.weight.copy_(old.conv.weight[out][:, into])
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(new.bn, name).copy_(getattr(old.bn, name)[out])
    return out


def _importance(conv: Any, into: Channels | None = None) -> NDArray[np.float32]:
    weight = conv.conv.weight if into is None else conv.conv.weight[:, into]
    scale = conv.bn.weight.abs() / torch.sqrt(conv.bn.running_var + conv.bn.eps)
    found: NDArray[np.float32] = (weight.abs().flatten(1).sum(1) * scale).numpy()
    return found


def _largest(importance: NDArray[np.float32], count: int) -> Channels:
    if count > len(importance):
        raise LayoutError("the target is wider than the model", where="width")
    return np.sort(np.argsort(-importance, kind="stable")[:count])
