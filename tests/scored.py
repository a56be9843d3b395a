"""Tiny detector sites whose score says exactly which weights were scored: a stand-in for mAP that is never zero."""

from pathlib import Path

import numpy as np
import pytest

from polypfed.clients.detector_client import DetectorClient, _resident
from polypfed.core.model import Vector
from polypfed.data.synth import synth
from polypfed.detect.metrics import DetectionMetrics

TINY = """
[data]
partition = "{root}"
[model]
image_size = 32
[train]
batch = 2
optimizer = "SGD"
lr = 0.01
clip = 0
[select]
name = "all"
"""


def fingerprint(x: Vector) -> float:
    """A number in [0, 1) that another model would hardly share."""
    return float(np.abs(np.asarray(x, np.float64) * np.linspace(1, 2, x.size)).sum() % 1)


def score_by_fingerprint(patch: pytest.MonkeyPatch) -> None:
    """Every site scores a model by its fingerprint."""

    def score(self: DetectorClient, model: object) -> DetectionMetrics:
        return DetectionMetrics(map50=fingerprint(_resident(self.arch).values))

    patch.setattr(DetectorClient, "_score", score)


def make_sites(folder: Path) -> Path:
    """Two sites of four training images."""
    synth(folder / "data", sites=2, train=4, val=3, size=64, seed=1)
    return folder / "data"
