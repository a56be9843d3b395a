"""`polypfed compress` as a user calls it, and its model as the start of a federation."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("polypfed.detect.yolo", reason="install polypfed[yolo]")
sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))
from polyps import write_site

from polypfed.cli import app
from polypfed.clients import DetectorClient
from polypfed.core.errors import ConfigError
from polypfed.core.rundir import load_model, save_model
from polypfed.select import All


def test_a_narrower_model_is_tuned_written_and_good_to_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no template is there: no latencies
    monkeypatch.setenv("POLYPFED_CONVERTER", str(tmp_path / "converter"))
    for part, count in (("train", 4), ("val", 3)):
        write_site(tmp_path / part, count, seed=count)
    given = DetectorClient("a", tmp_path / "train", tmp_path / "val", imgsz=64, selector=All())
    spec, x = given.initial()
    save_model(tmp_path / "model.safetensors", spec, x)
    words = ["compress", "model.safetensors", "--train", "train", "--val", "val", "-o", "out", "--width", "0.5"]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*words, "--epochs", "1", "--image-size", "64"])
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.splitlines()]
    table = {row[0]: row[1:] for row in rows if row and row[0].startswith("yolov5n") and row[0][-1] != ":"}
    assert {"yolov5n", "yolov5n-0.5"} <= set(table)
    narrow, y = load_model(tmp_path / "out" / "yolov5n-0.5.safetensors")
    assert 0.2 < y.size / x.size < 0.35  # half the channels on either side
    assert float(table["yolov5n-0.5"][0]) == pytest.approx(y.size / 1e6, abs=0.01)
    start = DetectorClient(
        "a", tmp_path / "train", tmp_path / "val", arch="yolov5n-0.5", imgsz=64,
        warm_start=tmp_path / "out" / "yolov5n-0.5.safetensors",
    ).initial()  # fmt: skip
    assert start[0] == narrow
    assert start[1].tobytes() == y.tobytes()


def test_what_is_no_model_is_said_in_a_line(tmp_path: Path) -> None:
    words = ["compress", str(tmp_path), "--train", str(tmp_path), "--val", str(tmp_path), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ConfigError)
    assert "holds no model" in str(done.exception)
