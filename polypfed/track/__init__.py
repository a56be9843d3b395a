"""Trackers: the figures of a run, as its history has them, in MLflow, TensorBoard, Prometheus and JSON logs."""

from polypfed.track.json_log import JsonLog
from polypfed.track.mlflow import MLflow
from polypfed.track.prometheus import Prometheus
from polypfed.track.settings import TrackSettings
from polypfed.track.tensorboard import TensorBoard
from polypfed.track.tracking import Tracker, Tracking

__all__ = ["JsonLog", "MLflow", "Prometheus", "TensorBoard", "TrackSettings", "Tracker", "Tracking"]
