"""Skips a module of tests where the device's packages are not installed."""

from importlib.util import find_spec

import pytest


def need_device() -> None:
    """OpenCV, and a TFLite runtime of either name."""
    if not find_spec("cv2") or not (find_spec("ai_edge_litert") or find_spec("tflite_runtime")):
        pytest.skip("no OpenCV or TFLite runtime: install polypfed[edge]", allow_module_level=True)
