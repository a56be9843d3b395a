"""Detectors, what they find, and how well. This room loads numpy alone; YOLO lives in `polypfed.detect.yolo`."""

from polypfed.detect.detections import Detections
from polypfed.detect.metrics import (
    DetectionMetrics,
    average_precision,
    box_iou,
    detection_metrics,
    match,
    mistakes,
)

__all__ = [
    "DetectionMetrics",
    "Detections",
    "average_precision",
    "box_iou",
    "detection_metrics",
    "match",
    "mistakes",
]
