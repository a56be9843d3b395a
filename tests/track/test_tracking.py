"""What all trackers have in common, the JSON log, and the table [track]."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import polypfed as pf
from polypfed import config as configs
from polypfed.core.errors import ConfigError, QuorumError
from polypfed.core.history import History
from polypfed.federation import Event
from polypfed.track import JsonLog, MLflow, Prometheus, TensorBoard, Tracking, TrackSettings
from polypfed.track.tracking import figures
from tests.track.conftest import federation


class Notes:
    def __init__(self, fail: str = "") -> None:
        self.seen: list[Any] = []
        self._fail = fail

    def _note(self, what: str, value: object) -> None:
        self.seen.append(value)
        if what == self._fail:
            raise ConnectionError("nobody there") if what != "open" else ConfigError("cannot be opened")

    def open(self) -> None:
        self._note("open", "open")

    def tell(self, event: Event) -> None:
        self._note("tell", event)

    def close(self, error: BaseException | None) -> None:
        self._note("close", error)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_is_told_once_after_it_is_saved_and_all_of_them_at_a_resume(run: Callable[..., History]) -> None:
    told: list[Notes] = []

    def make() -> Tracking:
        told.append(Notes())
        return Tracking(told[-1])

    history = run(make)
    first, second = ([e for e in notes.seen if isinstance(e, Event)] for notes in told)
    rows = [[row for event in events for row in event.rows] for events in (first, second)]
    assert rows[1] == history.rows
    assert rows[0] == [row for row in history.rows if row["round"] <= 3]
    assert second[0].kind == "resumed"
    assert {row["round"] for row in second[0].rows} == {0, 1, 2, 3}
    assert all(not event.rows for event in first + second if event.kind not in ("saved", "resumed"))
    assert {event.run for event in first} == {event.run for event in second} != {""}


def test_one_that_fails_is_given_up_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Notes("tell"), Notes()
    with caplog.at_level(logging.WARNING), Tracking(bad, good) as listen:
        listen(Event("round", 1))
        listen(Event("saved", 1))
    assert [type(seen).__name__ for seen in bad.seen] == ["str", "Event", "ConnectionError"]
    assert good.seen == ["open", Event("round", 1), Event("saved", 1), None]
    assert [record.getMessage() for record in caplog.records] == [
        "Notes.tell: nobody there; the run goes on without it"
    ]


def test_one_that_cannot_be_opened_stops_the_run_before_it_begins(tmp_path: Path) -> None:
    first = Notes()
    with pytest.raises(ConfigError, match="cannot be opened"), Tracking(first, Notes("open")):
        raise AssertionError
    assert [type(seen).__name__ for seen in first.seen] == ["str", "ConfigError"]


def test_one_that_cannot_be_closed_hides_no_error() -> None:
    with pytest.raises(QuorumError), Tracking(Notes("close")):
        raise QuorumError("too few")


def test_the_json_log_has_the_figures_of_the_history(run: Callable[..., History], tmp_path: Path) -> None:
    history = run(lambda: Tracking(JsonLog(tmp_path / "logs" / "run.log", "study")))
    found = lines(tmp_path / "logs" / "run.log")
    rows = [
        {"round": line["round"], "site": line.get("site", ""), "metric": line["metric"], "value": line["value"]}
        for line in found
        if line["event"] == "figure"
    ]
    assert rows == history.rows
    assert [line["ok"] for line in found if line["event"] == "end"] == [True, True]
    assert {line["run"] for line in found} == {"study"}


def test_the_json_log_says_who_failed_and_not_in_which_words(tmp_path: Path) -> None:
    with pytest.raises(QuorumError), Tracking(JsonLog(tmp_path / "run.log")) as listen:
        federation(quorum=2).run(2, pf.backends.Local(), listen=listen)
    assert "patient" not in (tmp_path / "run.log").read_text()
    found = lines(tmp_path / "run.log")
    failed = [(line["event"], line["round"], line["site"], line["reason"]) for line in found if line.get("reason")]
    assert failed == [("fit", 2, "north", "crashed")]
    assert [line["level"] for line in found if line["event"] in ("abandoned", "end")] == ["warning", "error"]
    assert found[-1] | {"time": ""} == {
        "time": "", "level": "error", "run": "run", "event": "end", "ok": False, "error": "QuorumError"
    }  # fmt: skip


def test_the_json_log_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Tracking(JsonLog("-")) as listen:
        listen(Event("round", 1))
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["round", "end"]


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for tracker in (JsonLog(tmp_path / "file" / "run.log"), JsonLog(tmp_path)):
        with pytest.raises(ConfigError, match="cannot be written"):
            tracker.open()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"mlfow": "x"}, "mlfow: there is no such setting"),
        ({"prometheus": "9464"}, "prometheus: '9464' is not of type int"),
        ({"prometheus": True}, "prometheus: True is not of type int"),
        ({"prometheus": 70000}, "prometheus: 70000 is not a port"),
        ({"tensorboard": ""}, "tensorboard: '' is not of type str, or empty"),
        ({"mlflow": "https://me:secret@example.org/x"}, "mlflow: the URI holds a name or a password"),
    ],
)
def test_a_table_that_cannot_be(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as found:
        TrackSettings.from_table(table)
    assert "secret" not in str(found.value)


def test_a_study_names_its_trackers(tmp_path: Path) -> None:
    text = '[data.synth]\n[track]\njson = "-"\ntensorboard = "tb"\nprometheus = 0\nmlflow = "sqlite:///x.db"\n'
    config = configs.parse(text, tmp_path / "study.toml")
    assert config.track["tensorboard"] == str(tmp_path / "tb")
    kinds = [type(tracker) for tracker in TrackSettings(**config.track).open("study")._trackers]
    assert kinds == [JsonLog, TensorBoard, Prometheus, MLflow]
    with pytest.raises(ConfigError, match=r"study.toml: \[track\] json: 3 is not of type str"):
        configs.parse("[data.synth]\n[track]\njson = 3\n", tmp_path / "study.toml")


def test_the_last_row_of_a_kind_counts() -> None:
    rows = [{"round": 1, "site": "", "metric": "epsilon", "value": v} for v in (1.0, 2.0)]
    assert figures(rows) == {("epsilon", "", 1): 2.0}
