"""The latency table: numbers that fit together, sensors, and a runtime of another age."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
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


_OLD = """
import sys, numpy as np
from polypfed.detect.runtime import runtime
from polypfed.detect.litert import LiteRTDetector
from polypfed.detect.quantize import quantize
from polypfed.detect.patch import patch
from polypfed.detect.template import Template
assert runtime()[1].startswith("tflite-runtime"), runtime()
assert np.__version__ < "2", np.__version__
template, arrays = Template.open(sys.argv[1]), dict(np.load(sys.argv[2]))
frames = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in range(6)]
for model in (*(patch(template, arrays, p) for p in ("fp32", "fp16", "dynamic")), quantize(template, arrays, frames)):
    print(LiteRTDetector(model, conf=0.001)(frames[0]).best)
"""


@pytest.mark.skipif(
    "POLYPFED_OLD_PYTHON" not in os.environ, reason="no Python with tflite-runtime: POLYPFED_OLD_PYTHON"
)
def test_the_old_runtime_runs_every_precision(template, arrays, litert, tmp_path):
    """tflite-runtime 2.14 with NumPy 1, in an environment of its own."""
    np.savez(tmp_path / "arrays.npz", **arrays)
    command = ["-c", _OLD, str(Path(__file__).with_name("mini-64.zip")), str(tmp_path / "arrays.npz")]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [os.environ["POLYPFED_OLD_PYTHON"], *command], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    new = subprocess.run(
        [sys.executable, *[c.replace("assert", "0 and") for c in command]],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert [float(v) for v in done.stdout.split()] == pytest.approx([float(v) for v in new.stdout.split()], abs=0.15)
