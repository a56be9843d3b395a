"""Smoothing by hand: averages, gaps, flashes, and tracks that stay apart."""

import numpy as np
import pytest

from polypfed.core.errors import ConfigError
from polypfed.detect import Detections
from polypfed.detect.smooth import Smoother


def seen(*rows: tuple[float, float]) -> Detections:
    """Boxes of 20 pixels at x, with a confidence."""
    return Detections(np.array([[x, 0, x + 20, 20] for x, _ in rows]).reshape(-1, 4), np.array([c for _, c in rows]))


def test_confidences_and_boxes_are_averages():
    smooth = Smoother(weight=0.5, least=0.1)
    values = [smooth(seen((0, 0.8))).best, smooth(seen((0, 0.8))).best, smooth(seen((4, 0.8))).best]
    assert values == pytest.approx([0.4, 0.6, 0.7])
    assert smooth(seen((4, 0.8))).xyxy[0, 0] == pytest.approx(3)  # 0, 0, 2, 3


def test_a_gap_is_bridged_and_then_forgotten():
    smooth = Smoother(weight=0.5, least=0.25, patience=2)
    for _ in range(6):
        smooth(seen((0, 0.9)))
    bridged = [len(smooth(Detections())) for _ in range(4)]
    assert bridged == [1, 0, 0, 0]  # 0.44, then below 0.25
    assert smooth(seen((0, 0.9))).best == pytest.approx(0.45)  # a new track


def test_a_flash_stays_weak():
    smooth = Smoother(weight=0.4, least=0.25)
    assert len(smooth(seen((0, 0.6)))) == 0


def test_two_polyps_keep_their_numbers():
    smooth = Smoother(weight=1.0, least=0.1)
    first = smooth.tracked(seen((0, 0.9), (100, 0.8)))[1]
    second = smooth.tracked(seen((102, 0.95), (1, 0.5)))[1]
    assert (first, second) == ([1, 2], [2, 1])


def test_weight_one_changes_nothing():
    smooth, found = Smoother(weight=1.0, least=0.01), seen((0, 0.9), (50, 0.3))
    for _ in range(3):
        out = smooth(found)
        assert (out.xyxy == found.xyxy).all()
        assert (out.confidence == found.confidence).all()
    assert len(smooth(Detections())) == 0


def test_settings():
    with pytest.raises(ConfigError, match="weight"):
        Smoother(weight=0)
    with pytest.raises(ConfigError, match="patience"):
        Smoother(patience=-1)
