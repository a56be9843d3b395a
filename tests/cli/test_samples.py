"""`polypfed samples` and `polypfed bench latency` as a user calls them."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from tests.runtimes import need_device

pytest.importorskip("cryptography", reason="install polypfed[edge]")

from polypfed.cli import bench, samples
from polypfed.cli.device import device
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
    need_device()
    from polypfed.detect.template import Template

    model = tmp_path / "mini.tflite"
    model.write_bytes(Template.open(MINI).blank("int8").data)
    output = run(
        bench.app, "latency", model, "--runs", 2, "--threads", 1, "--watts", 1.65, "--json", tmp_path / "l.json"
    )
    assert "FPS/W" in output
    (row,) = json.loads((tmp_path / "l.json").read_text())["rows"]
    assert (row["precision"], row["watts"], row["threads"], row["npu"]) == ("int8", 1.65, 1, False)


def test_the_service_keeps_hard_frames(tmp_path):
    need_device()
    from PIL import Image

    from polypfed.core.model import ModelSpec
    from polypfed.core.rundir import save_model
    from polypfed.detect.template import Template

    values = {}
    for slot in Template.open(MINI).blank("fp32").slots:
        out, height, width, deep = slot.shape
        values[slot.layer.weight] = np.zeros((out, deep, height, width), np.float32)
        names = [f"{slot.layer.norm}.{n}" for n in ("weight", "bias", "running_mean", "running_var")]
        values |= {n: np.ones(out, np.float32) for n in (names if slot.layer.norm else [f"{slot.layer.name}.bias"])}
    for name in ("scores.0.bias", "scores.1.bias"):
        values[name][...] = -1  # confidence 0.27 everywhere
    spec = ModelSpec.of(values)
    save_model(tmp_path / "models" / "round-1.safetensors", spec, spec.pack(values))
    (tmp_path / "in").mkdir()
    for i in range(5):
        Image.fromarray(np.full((48, 64, 3), 40 * i, np.uint8)).save(tmp_path / "in" / f"{i}.png")
    app = typer.Typer()
    app.command()(device)
    place = ("--template", MINI, "--models", tmp_path / "models", "--store", tmp_path / "s")
    with pytest.raises(ConfigError, match="a store needs a key"):
        run(app, tmp_path / "in", *place)
    output = run(app, tmp_path / "in", *place, "--key", tmp_path / "k", "--every", 2)
    assert output.strip() == "5 frames, 5 hard, 3 kept, 0 errors, 1 models, 0 refused"
    with SampleStore(tmp_path / "s", Vault(tmp_path / "k")) as store:
        assert [(r.model, round(r.confidence, 2)) for r in store.records()] == [("round-1", 0.27)] * 3
        assert [store.name(r.id) for r in store.records()] == ["0.png", "2.png", "4.png"]
