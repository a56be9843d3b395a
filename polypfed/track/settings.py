"""The table [track]: of a study's file, or of a server's."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from polypfed.core.errors import ConfigError
from polypfed.track.json_log import STANDARD_ERROR, JsonLog
from polypfed.track.mlflow import MLflow, check_uri
from polypfed.track.prometheus import Prometheus
from polypfed.track.tensorboard import TensorBoard
from polypfed.track.tracking import Tracker, Tracking


@dataclass(frozen=True)
class TrackSettings:
    """Which trackers; none that is not named.

    Attributes:
        mlflow: URI of its server, or of a database file. experiment: the run's experiment there.
        tensorboard: folder of event files.
        prometheus: port on 127.0.0.1.
        json: file of JSON lines; "-" is standard error.
    """

    mlflow: str = ""
    experiment: str = "polypfed"
    tensorboard: str = ""
    prometheus: int | None = None
    json: str = ""

    @classmethod
    def from_table(cls, table: Mapping[str, Any], base: Path = Path()) -> "TrackSettings":
        """Check the table; relative paths in it are relative to `base`.

        Raises:
            ConfigError: a setting is unknown, of the wrong type, out of range, or holds a password.
        """
        known = {f.name: int if f.name == "prometheus" else str for f in fields(cls)}
        for key, value in table.items():
            if key not in known:
                raise ConfigError("there is no such setting", where=key, remedy=f"There are: {', '.join(known)}")
            if type(value) is not known[key] or value == "":
                raise ConfigError(f"{value!r} is not of type {known[key].__name__}, or empty", where=key)
        port = table.get("prometheus", 0)
        if not 0 <= port <= 65535:
            raise ConfigError(f"{port} is not a port, 0 to 65535", where="prometheus")
        check_uri(table.get("mlflow", ""))
        places = {k: str(base / v) for k, v in table.items() if k in ("tensorboard", "json") and v != STANDARD_ERROR}
        return cls(**{**table, **places})

    def open(self, name: str, params: Mapping[str, object] | None = None) -> Tracking:
        """The listener of a run called `name`, which has these settings."""
        chosen: list[Tracker] = []
        if self.json:
            chosen.append(JsonLog(self.json, name))
        if self.tensorboard:
            chosen.append(TensorBoard(self.tensorboard, name))
        if self.prometheus is not None:
            chosen.append(Prometheus(self.prometheus, name))
        if self.mlflow:
            chosen.append(MLflow(self.mlflow, self.experiment, name, params))
        return Tracking(*chosen)
