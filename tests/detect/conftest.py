"""What the tests of device models share: the runtime, the small template, and a small trained detector."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from polypfed.detect.template import Template


@pytest.fixture(scope="session")
def litert():
    """Skips where no TFLite runtime is installed."""
    if not find_spec("ai_edge_litert") and not find_spec("tflite_runtime"):
        pytest.skip("no TFLite runtime: install polypfed[edge]")


@pytest.fixture(scope="session")
def mini():
    pytest.importorskip("torch", reason="no torch: install polypfed[yolo]")
    import mini

    return mini


@pytest.fixture(scope="session")
def template() -> Template:
    return Template.open(Path(__file__).with_name("mini-64.zip"))


@pytest.fixture(scope="session")
def arrays(template):
    """Random weights and statistics for the template, without torch."""
    return random_arrays(template)


def random_arrays(template: Template, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {}
    for slot in template.blank("fp32").slots:
        out, height, width, deep = slot.shape
        arrays[slot.layer.weight] = rng.normal(0, 0.3, (out, deep, height, width)).astype(np.float32)
        if slot.layer.norm:
            for name in ("weight", "bias", "running_mean"):
                arrays[f"{slot.layer.norm}.{name}"] = rng.normal(0, 0.5, out).astype(np.float32)
            arrays[f"{slot.layer.norm}.running_var"] = rng.uniform(0.2, 2, out).astype(np.float32)
        else:
            arrays[f"{slot.layer.name}.bias"] = rng.normal(0, 0.3, out).astype(np.float32)
    return arrays


@pytest.fixture(scope="session")
def learned(mini, litert):
    """Arrays of a detector of discs, trained for some seconds."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return mini.arrays_of(mini.trained(200))
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def discs(mini):
    """300 frames with their boxes, none of them seen in training."""
    rng = np.random.default_rng(9)
    pairs = [mini.disc(rng) for _ in range(300)]
    return [image for image, _ in pairs], [boxes for _, boxes in pairs]
