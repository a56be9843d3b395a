"""MLflow: a run of ours is a run of an experiment there."""

import os
import posixpath
import time
from collections.abc import Mapping
from typing import Any

from polypfed.core.errors import ConfigError
from polypfed.core.extras import require
from polypfed.core.journal import Happening
from polypfed.core.messages import one_line
from polypfed.track.tracking import figures

_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet"}
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # its own: 7 retries, 120 s
_BATCH, _LONGEST = 1000, 250  # MLflow's own limits: metrics in a request, characters of a name
_TAG = "polypfed.run"


class MLflow:
    """Logs every figure as a metric METRIC/SITE, or METRIC where it is the whole federation's; its step is the round.

    A resumed run goes on in the same run of MLflow, found by the run's identity, and nothing is logged twice. MLflow's
    own telemetry is switched off. A password does not belong into `uri`: MLflow takes it from
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.

    Args:
        uri: of the tracking server, or of a database file: "http://127.0.0.1:5000", "sqlite:///mlflow.db".
        experiment: is made if there is none of this name.
        name: of the run.
        params: settings to show with it.

    Raises:
        ConfigError: the URI holds a password.
    """

    def __init__(
        self, uri: str, experiment: str = "polypfed", name: str = "run", params: Mapping[str, object] | None = None
    ) -> None:
        check_uri(uri)
        self._uri, self._experiment, self._name, self._params = uri, experiment, name, dict(params or {})
        self._client: Any = None
        self._run = ""

    def open(self) -> None:
        """Find the experiment.

        Raises:
            ConfigError: the server does not answer. MissingExtraError: MLflow is not installed.
        """
        os.environ.update(_QUIET)
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        tracking = require("mlflow.tracking", extra="mlflow")
        try:
            self._client = tracking.MlflowClient(tracking_uri=self._uri)
            found = self._client.get_experiment_by_name(self._experiment)
            self._in = found.experiment_id if found else self._client.create_experiment(self._experiment)
        except Exception as error:
            problem = f"MLflow at {self._uri} cannot be used ({one_line(error)})"
            raise ConfigError(problem, where="track.mlflow", remedy="Start it, or correct the URI") from error

    def tell(self, event: Happening) -> None:
        """Log what is new."""
        points = {(name_of(m, site), round): value for (m, site, round), value in figures(event.rows).items()}
        if not self._run:
            logged = self._begin(event.run)
            points = {key: value for key, value in points.items() if logged.get(key) != value}
        metric, now = require("mlflow.entities", extra="mlflow").Metric, int(time.time() * 1000)
        metrics = [metric(name, value, now, round) for (name, round), value in points.items()]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run, metrics=metrics[start : start + _BATCH])

    def close(self, error: BaseException | None) -> None:
        """Say how the run ended."""
        if self._run:
            stopped = isinstance(error, KeyboardInterrupt)
            self._client.set_terminated(self._run, "FINISHED" if error is None else "KILLED" if stopped else "FAILED")

    def _begin(self, run: str) -> dict[tuple[str, int], float]:
        """Go on with the run of this identity, or begin it; what is logged of it, by name and round."""
        if found := self._client.search_runs([self._in], f"tags.`{_TAG}` = '{run}'"):
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            logged = [m for name in found[0].data.metrics for m in self._client.get_metric_history(self._run, name)]
            return {(m.key, m.step): m.value for m in logged}
        self._run = self._client.create_run(self._in, tags={_TAG: run}, run_name=self._name).info.run_id
        entity = require("mlflow.entities", extra="mlflow").Param
        self._client.log_batch(self._run, params=[entity(k, str(v)) for k, v in self._params.items()])
        return {}


def check_uri(uri: str) -> None:
    """Raise a ConfigError if the URI of a server holds a name or a password: it is written into the run's folder."""
    if "@" in uri.partition("://")[2].partition("/")[0]:
        remedy = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        raise ConfigError("the URI holds a name or a password", where="mlflow", remedy=remedy)


def name_of(metric: str, site: str = "") -> str:
    """What a metric is called in MLflow, which has no @ and no + in names and takes them for paths.

    >>> name_of("map50", "north"), name_of("map50"), name_of("map50@south", "north")
    ('map50/north', 'map50', 'map50 at south/north')
    """
    name = (f"{metric}/{site}" if site else metric).replace("@", " at ").replace("+", " plus ")[:_LONGEST]
    plain = posixpath.normpath(name) == name and not name.startswith((".", "/"))
    return name if plain else "_" + name.replace("/", "_")[1:]
