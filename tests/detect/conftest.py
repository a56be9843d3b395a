"""What the tests of device models share: the runtime, the small template, and a small trained detector."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from polypfed.detect.template import Template
from tests.detect.random_arrays import random_arrays


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
