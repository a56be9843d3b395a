"""Prometheus' endpoint, scraped over HTTP and read by Prometheus' own parser."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest

import polypfed as pf
from polypfed.core.errors import ConfigError
from polypfed.federation import Event
from polypfed.track import Prometheus, Tracking
from tests.track.conftest import federation

parser = pytest.importorskip("prometheus_client.parser", reason="needs the extra prometheus")


def scrape(port: int, **headers: str) -> tuple[str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]


def samples(port: int) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parser.text_string_to_metric_families(scrape(port)[0]):
        for sample in family.samples:
            assert sample.labels["run"] == "study"
            key = tuple(sample.labels[name] for name in ("metric", "site") if name in sample.labels)
            found.setdefault(sample.name, {})[key] = sample.value
    return found


def test_what_is_scraped_is_the_history_round_by_round(tmp_path: Path) -> None:
    """At every "saved" event, the last values of the history so far; after the resume those of earlier rounds too."""
    rows: list[dict] = []

    def part(rounds: int, resume: bool) -> None:
        prometheus = Prometheus(0, "study")
        with Tracking(prometheus) as tracking:

            def listen(event: Event) -> None:
                tracking(event)
                if event.rows:
                    rows.extend(event.rows if event.kind == "saved" or not rows else ())
                    seen = samples(prometheus.port)
                    assert seen["polypfed_figure"] == {(r["metric"], r["site"]): r["value"] for r in rows}
                    assert seen["polypfed_round"] == {(): event.round}

            fed = federation()
            if resume:
                history = fed.resume(tmp_path, rounds, pf.backends.Local(), listen)
            else:
                history = fed.run(rounds, pf.backends.Local(), tmp_path, listen)
            assert rows == history.rows
            seen = samples(prometheus.port)
            assert set(seen["polypfed_heard_timestamp_seconds"]) == {("north",), ("south",)}
            assert seen.get("polypfed_refused_total", {}) == ({} if resume else {("north",): 1.0})
        with pytest.raises(urllib.error.URLError):
            scrape(prometheus.port)

    part(3, resume=False)
    part(5, resume=True)


def test_in_the_format_that_is_asked_for() -> None:
    prometheus = Prometheus(0)
    with Tracking(prometheus) as listen:
        listen(Event("round", 7))
        text, kind = scrape(prometheus.port, Accept="application/openmetrics-text; version=1.0.0")
        assert kind.startswith("application/openmetrics-text")
        assert text.endswith("# EOF\n")
        assert 'polypfed_round{run="run"} 7.0' in scrape(prometheus.port)[0]


def test_only_this_machine_may_look() -> None:
    prometheus = Prometheus(0)
    with Tracking(prometheus):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            scrape(prometheus.port, Host="evil.example")
        with pytest.raises(ConfigError, match="cannot be used"):
            Prometheus(prometheus.port).open()
