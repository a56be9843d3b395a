"""Prometheus: the latest figures of a run, at an address of this machine that Prometheus scrapes."""

from typing import Any

from polypfed.core.extras import require
from polypfed.core.journal import Happening
from polypfed.core.messages import Failure
from polypfed.core.web import Answer, Asked, WebServer
from polypfed.track.tracking import figures

PATH = "/metrics"


class Prometheus:
    """Serves http://127.0.0.1:PORT/metrics while the run lasts. A series has the label `run`.

    `polypfed_figure` has the labels `metric` and `site` ("" is the whole federation) and the value of the latest round
    that has one; `polypfed_round` is the round under way; `polypfed_heard_timestamp_seconds` says when a site's last
    answer came, `polypfed_refused_total` how many of its answers did not count. After a resume the figures of earlier
    rounds are there again; the other two count anew.

    Args:
        port: 0 takes a free one; see `port` once it is open.
        name: of the run.
    """

    def __init__(self, port: int, name: str = "run") -> None:
        self._asked, self._name = port, name
        self._server: _Metrics | None = None

    @property
    def port(self) -> int:
        """The port that it serves."""
        return self._server.port if self._server else self._asked

    def open(self) -> None:
        """Serve.

        Raises:
            ConfigError: the port is taken. MissingExtraError: prometheus_client is not installed.
        """
        client: Any = require("prometheus_client", extra="prometheus")
        registry = client.CollectorRegistry()
        figure = "The latest value, as the history has it"
        self._figure = client.Gauge("polypfed_figure", figure, ["run", "metric", "site"], registry=registry)
        self._round = client.Gauge("polypfed_round", "The round under way", ["run"], registry=registry)
        heard = "When a site last answered"
        self._heard = client.Gauge("polypfed_heard_timestamp_seconds", heard, ["run", "site"], registry=registry)
        refused = "Answers of a site that did not count"
        self._refused = client.Counter("polypfed_refused_total", refused, ["run", "site"], registry=registry)
        self._server = _Metrics(registry, self._asked)
        self._server.__enter__()

    def tell(self, event: Happening) -> None:
        """Set what has changed."""
        self._round.labels(self._name).set(event.round)
        latest = {(metric, site): value for (metric, site, _), value in sorted(figures(event.rows).items(), key=_round)}
        for (metric, site), value in latest.items():
            self._figure.labels(self._name, metric, site).set(value)
        if event.site:
            self._heard.labels(self._name, event.site).set_to_current_time()
            if isinstance(event.reply, Failure):
                self._refused.labels(self._name, event.site).inc()

    def close(self, error: BaseException | None) -> None:
        """Serve no more."""
        if self._server is not None:
            self._server.__exit__(None, None, None)


def _round(figure: tuple[tuple[str, str, int], float]) -> int:
    return figure[0][2]


class _Metrics(WebServer):
    def __init__(self, registry: Any, port: int) -> None:
        super().__init__(port=port, where="track.prometheus")
        self._registry = registry

    def answer(self, asked: Asked) -> Answer:
        """The page that is scraped, in the format that is asked for."""
        if asked.path != PATH:
            return Answer(b"see /metrics", code=404)
        exposition: Any = require("prometheus_client.exposition", extra="prometheus")
        encode, kind = exposition.choose_encoder(asked.headers.get("Accept", ""))
        return Answer(encode(self._registry), kind)
