"""`polypfed samples` and `polypfed bench latency` as a user calls them."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("cryptography", reason="install polypfed[edge]")

from polypfed.cli import bench, samples
from polypfed.core.errors import ConfigError, DataError, PolypfedError
from polypfed.data.store import SampleStore, Vault

MINI = Path(__file__).parents[1] / "detect" / "mini-64.zip"


def run(app, *arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(done.exception, PolypfedError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def place(tmp_path):
    with SampleStore(tmp_path / "store", Vault(tmp_path / "key")) as store:
        for i in range(2):
            store.add(np.full((20, 40, 3), 50 * i, np.uint8), 0.3, "r1")
    return tmp_path / "store", "--key", tmp_path / "key"


def test_out_and_in(place, tmp_path):
    assert "2 frames" in run(samples.app, "export", *place, "--to", tmp_path / "out", "--format", "yolo")
    for image in (tmp_path / "out" / "images").iterdir():
        (tmp_path / "out" / "labels" / f"{image.stem}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    answers = ("--from", tmp_path / "out", "--by", "dr", "--format", "yolo")
    assert run(samples.app, "import", *place, *answers).startswith("2 labelled, 2 boxes")
    assert run(samples.app, "show", *place).split()[-7:] == ["2", "2", "0.0", "0", "0", "2", "0"]
    assert run(samples.app, "retain", *place, "--days", 0).startswith("2 frames forgotten")


def test_wiping_asks(place, tmp_path):
    assert CliRunner().invoke(samples.app, ["wipe", *map(str, place)], input="n\n").exit_code == 1
    assert (tmp_path / "store" / "store.db").exists()
    run(samples.app, "wipe", *place, "--yes")
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "key").exists()


def test_mistakes(place, tmp_path):
    with pytest.raises(DataError, match="is no sample store"):
        run(samples.app, "show", tmp_path, "--key", tmp_path / "key")
    with pytest.raises(DataError, match="the key cannot be read"):
        run(samples.app, "show", place[0], "--key", tmp_path / "other")
    with pytest.raises(ConfigError, match="not a format"):
        run(samples.app, "export", *place, "--to", tmp_path / "x", "--format", "cvat")
    assert not (tmp_path / "x").exists()


def test_bench_latency(tmp_path):
    pytest.importorskip("ai_edge_litert", reason="no TFLite runtime: install polypfed[edge]")
    pytest.importorskip("cv2")
    from polypfed.detect.template import Template

    model = tmp_path / "mini.tflite"
    model.write_bytes(Template.open(MINI).blank("int8").data)
    output = run(
        bench.app, "latency", model, "--runs", 2, "--threads", 1, "--watts", 1.65, "--json", tmp_path / "l.json"
    )
    assert "FPS/W" in output
    (row,) = json.loads((tmp_path / "l.json").read_text())["rows"]
    assert (row["precision"], row["watts"], row["threads"], row["npu"]) == ("int8", 1.65, 1, False)
