"""BatchNorm folded into the convolution before it, in NumPy: what a device needs to turn arrays into a TFLite file.

Per output channel, with the running statistics of evaluation mode (Ioffe and Szegedy, 2015, algorithm 2):
    g = gamma / sqrt(var + eps);  W' = W * g;  b' = beta - mean * g
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import LayoutError

Floats = NDArray[np.float32]
EPS = 1e-3  # of every BatchNorm in ultralytics' YOLO models


@dataclass(frozen=True)
class Convolution:
    """One convolution of a detector, by the name of its module, such as "model.0.conv" or "model.24.cv2.0.2".

    Attributes:
        weight: name of its (out, in, h, w) array.
        norm: prefix of its BatchNorm's arrays; "" if a bias of its own takes their place.
    """

    name: str
    norm: str

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    def channels(self, arrays: Mapping[str, Floats], eps: float = EPS) -> tuple[Floats, Floats]:
        """(gain, bias) of each output channel, both (out,) float32.

        Raises:
            LayoutError: an array is missing or has another shape, a value is not finite, or a variance is negative.
        """
        out = _get(arrays, self.weight, 4).shape[0]
        if not self.norm:
            bias = _get(arrays, f"{self.name}.bias", 1, out)
            gain = np.ones(out, np.float32)
        else:
            gamma, beta, mean, var = (
                _get(arrays, f"{self.norm}.{n}", 1, out) for n in ("weight", "bias", "running_mean", "running_var")
            )
            with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
                gain = gamma / np.sqrt(var + np.float32(eps))
                bias = beta - mean * gain
            if not (var + eps > 0).all():
                raise LayoutError("has a negative variance", where=f"{self.norm}.running_var", remedy=_REMEDY)
        if not (np.isfinite(gain).all() and np.isfinite(bias).all()):
            raise LayoutError("has values that are not finite", where=self.norm or self.name, remedy=_REMEDY)
        return gain, bias

    def fold(self, arrays: Mapping[str, Floats]) -> tuple[Floats, Floats]:
        """(weight, bias): (out, h, w, in) and (out,) float32, as TFLite stores them."""
        gain, bias = self.channels(arrays)
        weight = arrays[self.weight].transpose(0, 2, 3, 1)
        folded = np.empty(weight.shape, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(weight, gain[:, None, None, None], out=folded)
            if not np.isfinite(folded.sum()):  # one pass; sums of values that large are no weights either
                raise LayoutError("has values that are not finite", where=self.weight, remedy=_REMEDY)
        return folded, bias


_REMEDY = "The model is damaged, or noise was added to its statistics: keep the model of the round before"


def convolutions(names: Iterable[str]) -> list[Convolution]:
    """The convolutions of a model, from the names of its arrays, in their order.

    `X.conv.weight` beside `X.bn.weight` has a BatchNorm; any other `X.weight` with an `X.bias` is one without. The
    distribution kernel `dfl.conv` is a constant of the decoder and not among them.
    """
    known = dict.fromkeys(names)
    found = []
    for name in known:
        module = name.removesuffix(".weight")
        if module == name or module.endswith("dfl.conv"):
            continue
        norm = f"{module.removesuffix('.conv')}.bn"
        if module.endswith(".conv") and f"{norm}.weight" in known:
            found.append(Convolution(module, norm))
        elif f"{module}.bias" in known and not module.endswith(".bn"):
            found.append(Convolution(module, ""))
    return found


def _get(arrays: Mapping[str, Floats], name: str, ndim: int, length: int | None = None) -> Floats:
    array = arrays.get(name)
    if array is None:
        raise LayoutError("is missing from the model", where=name)
    if array.ndim != ndim or array.dtype != np.float32 or (length is not None and array.shape != (length,)):
        raise LayoutError(f"is {array.dtype} of shape {array.shape}, which does not fit", where=name)
    return array
