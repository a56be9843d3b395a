"""Folding against torch's own BatchNorm, and statistics that cannot be folded."""

import numpy as np
import pytest

from polypfed.core.errors import LayoutError
from polypfed.detect.fold import Convolution, convolutions

LAYER = Convolution("model.0.conv", "model.0.bn")


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {"model.0.conv.weight": rng.normal(size=(5, 3, 3, 3)), "model.0.bn.running_var": rng.uniform(0.01, 9, 5)}
    found |= {f"model.0.bn.{n}": rng.normal(size=5) for n in ("weight", "bias", "running_mean")}
    return {n: a.astype(np.float32) for n, a in found.items()}


def test_it_is_the_convolution_and_its_batch_norm():
    torch = pytest.importorskip("torch")
    given = arrays()
    weight, bias = LAYER.fold(given)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    t = {n: torch.from_numpy(a).double() for n, a in given.items()}
    rest = [t[f"model.0.bn.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
    wanted = torch.nn.functional.batch_norm(
        torch.nn.functional.conv2d(x, t["model.0.conv.weight"]), *rest, training=False, eps=1e-3
    )
    got = torch.nn.functional.conv2d(
        x, torch.from_numpy(weight.transpose(0, 3, 1, 2).copy()).double(), torch.from_numpy(bias).double()
    )
    assert torch.allclose(got, wanted, atol=1e-5)
    assert weight.shape == (5, 3, 3, 3)


def test_by_hand():
    one = {"model.0.conv.weight": np.full((1, 1, 1, 1), 3, np.float32)}
    one |= {f"model.0.bn.{n}": np.array([v], np.float32) for n, v in
            (("weight", 2), ("bias", 5), ("running_mean", 7), ("running_var", 4 - 1e-3))}  # fmt: skip
    weight, bias = LAYER.fold(one)
    assert (weight.item(), bias.item()) == pytest.approx((3.0, -2.0))  # g = 2 / sqrt(4) = 1; 5 - 7 * 1


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("model.0.bn.running_var", -1.0, "negative variance"),
        ("model.0.bn.running_var", np.nan, "model.0.bn"),
        ("model.0.bn.weight", np.inf, "not finite"),
        ("model.0.conv.weight", np.nan, "not finite"),
        ("model.0.conv.weight", 3e38, "not finite"),
    ],
)
def test_bad_values_name_the_layer(name, value, error):
    given = arrays()
    given[name].flat[0] = value
    if value == 3e38:
        given["model.0.bn.running_var"][0] = 0
    with pytest.raises(LayoutError, match=error):
        LAYER.fold(given)


def test_missing_and_misshapen():
    given = arrays()
    del given["model.0.bn.bias"]
    with pytest.raises(LayoutError, match=r"model\.0\.bn\.bias: is missing"):
        LAYER.fold(given)
    with pytest.raises(LayoutError, match="does not fit"):
        LAYER.fold(arrays() | {"model.0.bn.bias": np.zeros(4, np.float32)})


def test_convolutions_of_yolo():
    yolo = pytest.importorskip("polypfed.detect.yolo", reason="no torch")
    model = yolo.build("yolov5n")
    names = [n for n, t in model.state_dict().items() if t.is_floating_point()]
    found = convolutions(names)
    modules = dict(model.named_modules())
    assert len(found) == 75
    assert sum(not layer.norm for layer in found) == 6
    assert all(hasattr(modules[layer.name], "kernel_size") for layer in found)
    used = {layer.weight for layer in found} | {f"{layer.name}.bias" for layer in found if not layer.norm}
    for part in ("weight", "bias", "running_mean", "running_var"):
        used |= {f"{layer.norm}.{part}" for layer in found if layer.norm}
    assert set(names) - used == {"model.24.dfl.conv.weight"}
