"""Pruning: dead channels may go without a change, shapes are those of the narrower architecture, names say which."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="install polypfed[yolo]")

import torch

from polypfed.core.errors import ConfigError, LayoutError
from polypfed.core.model import ModelSpec
from polypfed.detect import yolo
from polypfed.detect.export import architecture
from polypfed.detect.prune import prune
from polypfed.detect.widths import narrower, parts


def arrays_of(model) -> dict[str, np.ndarray]:
    state = model.state_dict().items()
    return {n: t.numpy().copy() for n, t in state if t.is_floating_point() and "dfl" not in n}


def output(arch: str, arrays: dict[str, np.ndarray], image: torch.Tensor) -> torch.Tensor:
    model = yolo.build(arch).eval()
    model.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()}, strict=False)
    with torch.inference_mode():
        return model(image)[0]


def test_a_channel_that_does_nothing_may_go() -> None:
    """The narrow model, embedded in a wide one whose other channels are dead, comes out again with the same answers."""
    torch.manual_seed(0)
    narrow = yolo.build("yolov5n-0.5", seed=4)
    for module in narrow.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    wide = yolo.build("yolov5n", seed=5)
    small = arrays_of(narrow)
    large = arrays_of(wide)
    out = prune(large, "yolov5n", "yolov5n-0.5")
    assert {n: a.shape for n, a in out.items()} == {n: a.shape for n, a in small.items()}
    dead = {n: np.ones_like(a) if n.endswith("running_var") else np.zeros_like(a) for n, a in large.items()}
    for name, array in dead.items():
        place = [slice(0, k) for k in small[name].shape]
        if name in JOINS:  # the inputs of a concatenation: each half begins at its own place
            halves = JOINS[name]
            step_wide, step_small = array.shape[1] // halves, small[name].shape[1] // halves
            for k in range(halves):
                array[: place[0].stop, k * step_wide : k * step_wide + step_small] = small[name][
                    :, k * step_small : (k + 1) * step_small
                ]
        else:
            array[tuple(place)] = small[name]
    image = torch.rand(1, 3, 64, 64)
    again = prune(dead, "yolov5n", "yolov5n-0.5")
    wanted = output("yolov5n-0.5", small, image)
    assert torch.allclose(output("yolov5n", dead, image), wanted, atol=1e-4)
    assert torch.allclose(output("yolov5n-0.5", again, image), wanted, atol=1e-4)


def _joins() -> dict[str, int]:
    c3 = [2, 4, 6, 8, 13, 17, 20, 23]
    found = {f"model.{i}.cv3.conv.weight": 2 for i in c3} | {"model.9.cv2.conv.weight": 4}
    return found | {f"model.{i}.cv{k}.conv.weight": 2 for i in (13, 17, 20, 23) for k in (1, 2)}


JOINS = _joins()


def test_nothing_cut_is_nothing_changed() -> None:
    arrays = arrays_of(yolo.build("yolov5n", seed=1))
    same = prune(arrays, "yolov5n", "yolov5n")
    assert all((same[n] == a).all() for n, a in arrays.items())


def test_what_cannot_be_cut() -> None:
    arrays = arrays_of(yolo.build("yolov5n-0.5"))
    with pytest.raises(LayoutError, match="is not the layout of yolov5n"):
        prune(arrays, "yolov5n", "yolov5n-0.5")
    with pytest.raises(LayoutError, match="wider than the model"):
        prune(arrays, "yolov5n-0.5", "yolov5n")
    for arch in ("yolov5n-0.05", "yolov5n-1.5", "yolov5q", "yolov5n-", 5):
        with pytest.raises(ConfigError, match="unknown architecture"):
            parts(arch)
    with pytest.raises(ConfigError, match="is not from"):
        narrower("yolov5n-0.5", 0.1)


@pytest.mark.parametrize("arch", ["yolov5n", "yolov5s", "yolov5n-0.75", "yolov5n-0.5", "yolov5s-0.75"])
def test_a_layout_says_its_name(arch: str) -> None:
    assert architecture(ModelSpec.of(arrays_of(yolo.build(arch)))) == arch
