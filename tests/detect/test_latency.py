"""The latency table: numbers that fit together, sensors, and a runtime of another age."""

import json
from pathlib import Path

import pytest

pytest.importorskip("cv2")

from polypfed.core.errors import ConfigError
from polypfed.detect import latency
from polypfed.detect.latency import Sensor, measure, precision_of, report
from polypfed.detect.patch import patch
from polypfed.detect.tflite import TFLite


@pytest.fixture
def models(template, arrays, litert, tmp_path) -> list[Path]:
    paths = []
    for precision in ("fp32", "fp16", "dynamic"):
        paths.append(tmp_path / f"mini-{precision}.tflite")
        paths[-1].write_bytes(patch(template, arrays, precision))
    return paths


def test_rows(models):
    rows = measure(models, threads=(1, 2), runs=5, watts=2.0)
    assert [(r.model, r.precision, r.threads) for r in rows] == [
        (f"mini-{p}", p, t) for p in ("fp32", "fp16", "dynamic") for t in (1, 2)
    ]
    for row in rows:
        for times in (row.invoke, row.frame):
            assert times["n"] == 5
            assert 0 < times["min"] <= times["p50"] <= times["p90"] <= times["p99"] <= times["max"]
        assert row.frame["p50"] > row.invoke["min"]
        assert row.fps == pytest.approx(1000 / row.invoke["mean"])
        assert (row.watts, row.watts_source) == (2.0, "given")
    about = report(rows)
    assert json.loads(json.dumps(about))["rows"][0]["fps"] == rows[0].fps
    assert "litert" in about["machine"]["runtime"] or "tflite" in about["machine"]["runtime"]


def test_without_a_meter_there_is_no_power(models):
    (row,) = measure(models[:1], runs=2)
    assert (row.watts, row.watts_source) == (None, None)


def test_a_sensor_of_the_system(models, tmp_path, monkeypatch):
    chip = tmp_path / "hwmon0"
    chip.mkdir()
    (chip / "name").write_text("ina226\n")
    (chip / "power1_input").write_text("1650000\n")
    assert Sensor("ina226", tmp_path).read() == 1.65
    with pytest.raises(ConfigError, match="This machine has: ina226"):
        Sensor("ina219", tmp_path)
    (row,) = measure(models[:1], runs=2, hwmon=str(chip / "power1_input"))
    assert row.watts == pytest.approx(1.65)
    (chip / "power1_input").write_text("n/a")
    with pytest.raises(ConfigError, match="cannot be read"):
        Sensor("ina226", tmp_path)


def test_precision_of_a_file(template):
    found = [precision_of(TFLite(template.blank(p).data)) for p in template.precisions]
    assert found == list(template.precisions)


def test_nothing_to_measure(models):
    for wrong in ({"models": []}, {"models": models, "threads": [0]}, {"models": models, "runs": 0}):
        with pytest.raises(ConfigError, match="at least one"):
            measure(**wrong)
    assert latency.USABLE == 20.0
