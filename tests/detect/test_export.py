"""Export: what is cached, what is refused, what a user is told; the conversion itself where it is installed."""

import json
import os
import platform
from pathlib import Path

import numpy as np
import pytest

from polypfed.core.errors import ConfigError, LayoutError, MissingExtraError
from polypfed.core.model import ModelSpec
from polypfed.core.rundir import save_model
from polypfed.detect.export import Converter, ExportError, architecture, export_model, find_template, model_file
from polypfed.detect.export.environment import ONNX, PINS, cache
from polypfed.detect.patch import patch


def installed(folder: Path, script: str) -> Converter:
    """An environment whose Python is a shell script."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / "python").chmod(0o755)
    (folder / "polypfed.json").write_text(json.dumps({"pins": [*PINS, *ONNX]}))
    return Converter(folder)


def test_the_caches_place(monkeypatch, tmp_path):
    monkeypatch.delenv("POLYPFED_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache() == tmp_path / "polypfed"
    monkeypatch.setenv("POLYPFED_CACHE", str(tmp_path / "own"))
    assert cache() == tmp_path / "own"
    monkeypatch.setenv("POLYPFED_CONVERTER", "/opt/converter")
    assert Converter().folder == Path("/opt/converter")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the message differs where there is no converter")
def test_without_a_converter_the_way_out_is_named(tmp_path):
    with pytest.raises(MissingExtraError, match="--install-converter"):
        find_template("yolov5n", 320, tmp_path, Converter(tmp_path / "none"))


def test_no_converter_for_this_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    for act in (lambda c: c.run({}), lambda c: c.install()):
        with pytest.raises(ConfigError, match=r"no converter for Linux aarch64.*filling in weights needs no converter"):
            act(Converter(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_failing_installation_is_one_line(tmp_path):
    wheels = tmp_path / "empty"
    wheels.mkdir()
    converter = Converter(tmp_path / "c")
    with pytest.raises(ConfigError, match=r"cannot install the converter \(ERROR: No matching distribution.*--wheels"):
        converter.install(wheels)
    assert not converter.ready


def test_a_failing_conversion_is_one_line(tmp_path):
    converter = installed(tmp_path / "c", "echo 'Traceback'; echo 'RuntimeError: no such op' >&2; exit 3")
    assert converter.ready
    with pytest.raises(ExportError, match=r"^converter: RuntimeError: no such op$"):
        find_template("yolov5n", 320, tmp_path, converter)
    (converter.folder / "polypfed.json").write_text(json.dumps({"pins": ["litert-torch==0.1"]}))
    assert not converter.ready


def test_the_converters_environment_is_offline(tmp_path):
    converter = installed(tmp_path / "c", f"env > {tmp_path}/env; cat $4 > {tmp_path}/request")
    converter.run({"what": "template"})
    seen = dict(line.partition("=")[::2] for line in (tmp_path / "env").read_text().splitlines())
    assert (seen["YOLO_OFFLINE"], seen["YOLO_AUTOINSTALL"], seen["HF_HUB_OFFLINE"]) == ("true", "false", "1")
    assert (Path(seen["PYTHONPATH"]) / "polypfed" / "detect").is_dir()


@pytest.fixture
def saved(tmp_path) -> Path:
    """A layout that begins like YOLOv5n."""
    spec = ModelSpec.of({"model.0.conv.weight": np.zeros((16, 3, 6, 6))})
    save_model(tmp_path / "run" / "model.safetensors", spec, np.zeros(spec.size, np.float32))
    return tmp_path / "run"


def test_combinations_that_do_not_exist(saved, tmp_path):
    out = tmp_path / "out"
    for settings, message in (
        ({"format": "coreml"}, "no such form"),
        ({"precision": "int4"}, "no such form"),
        ({"format": "onnx", "precision": "int8"}, "ONNX files are written in fp32"),
        ({"imgsz": 100}, "multiple of 32"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_model(saved, out, **settings)
    with pytest.raises(ConfigError, match="holds no model"):
        export_model(tmp_path / "nowhere", out)
    assert not out.exists()


def test_which_model_of_a_run(saved):
    assert model_file(saved) == saved / "model.safetensors"
    (saved / "best.safetensors").write_bytes(b"")
    assert model_file(saved) == saved / "best.safetensors"


def test_architecture_by_its_first_layer():
    for width, arch in ((16, "yolov5n"), (32, "yolov5s"), (80, "yolov5x")):
        assert architecture(ModelSpec.of({"model.0.conv.weight": np.zeros((width, 3, 6, 6))})) == arch
    with pytest.raises(LayoutError, match="not the layout of a YOLOv5"):
        architecture(ModelSpec.of({"model.0.conv.weight": np.zeros((17, 3, 6, 6))}))


def test_a_template_of_another_name(template, tmp_path):
    source = Path(__file__).with_name("mini-64.zip")
    (tmp_path / "yolov5n-64.zip").write_bytes(source.read_bytes())
    with pytest.raises(ConfigError, match="is a template of mini at 64"):
        find_template("yolov5n", 64, tmp_path)
    (tmp_path / "mini-64.zip").write_bytes(source.read_bytes())
    assert find_template("mini", 64, tmp_path).precisions == template.precisions


def test_the_small_template_holds_no_weights(template):
    for precision in template.precisions:
        blank = template.blank(precision)
        for slot in blank.slots:
            for span in (slot.weight, slot.bias):
                assert not any(blank.data[span.offset : span.stop])


@pytest.mark.slow
@pytest.mark.skipif(not Converter().ready, reason="the converter is not installed: polypfed export --install-converter")
def test_a_fresh_template_of_yolov5n_is_the_torch_model(tmp_path, litert):
    yolo = pytest.importorskip("polypfed.detect.yolo")
    import torch

    from polypfed.detect.export.worker import RawHeads
    from polypfed.detect.runtime import interpreter

    template = find_template("yolov5n", 64, tmp_path)
    model = yolo.build("yolov5n", seed=3).eval()
    arrays = {n: t.numpy() for n, t in model.state_dict().items() if t.is_floating_point()}
    frame = np.random.default_rng(0).random((1, 64, 64, 3), np.float32)
    with torch.no_grad():
        wanted = RawHeads(model)(torch.from_numpy(frame).permute(0, 3, 1, 2))
    runner = interpreter(patch(template, arrays))
    runner.set_tensor(runner.get_input_details()[0]["index"], frame)
    runner.invoke()
    for details, want in zip(runner.get_output_details(), wanted, strict=True):
        assert np.abs(runner.get_tensor(details["index"]) - want.permute(0, 2, 3, 1).numpy()).max() < 1e-4
    assert os.path.getsize(tmp_path / "yolov5n-64.zip") < 250_000


FRESH = """
import sys, torch
from polypfed.core.rundir import load_model
from polypfed.detect import yolo
from polypfed.detect.export.worker import RawHeads, to_tflite
spec, x = load_model(sys.argv[1])
model = yolo.build("yolov5n").eval()
model.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in spec.views(x).items()}, strict=False)
model.fuse(verbose=False)
open(sys.argv[2], "wb").write(to_tflite(RawHeads(model), 64, 6))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Converter().ready, reason="the converter is not installed: polypfed export --install-converter")
def test_weights_filled_in_give_the_outputs_of_a_fresh_conversion(tmp_path, litert):
    """The converter is given the same weights, folded by ultralytics and not by us."""
    pytest.importorskip("polypfed.detect.yolo")
    from polypfed.clients import DetectorClient
    from polypfed.detect.runtime import interpreter

    spec, x = DetectorClient("a", tmp_path, tmp_path, imgsz=64, init_seed=7).initial()
    x = x.copy()
    rng = np.random.default_rng(7)
    for part in spec.parts:  # statistics of a model that has been trained
        if part.name.endswith("running_mean"):
            x[part.start : part.stop] = rng.normal(0, 0.5, part.stop - part.start)
        if part.name.endswith("running_var"):
            x[part.start : part.stop] = rng.uniform(0.3, 3, part.stop - part.start)
    save_model(tmp_path / "model.safetensors", spec, x)
    converter = Converter()
    done = converter._start(
        [str(converter.python), "-c", FRESH, str(tmp_path / "model.safetensors"), str(tmp_path / "fresh.tflite")]
    )
    assert done.returncode == 0, done.stderr[-2000:]
    template = find_template("yolov5n", 64, tmp_path)
    frame = rng.random((1, 64, 64, 3), np.float32)
    found = []
    for data in (patch(template, spec.views(x)), (tmp_path / "fresh.tflite").read_bytes()):
        runner = interpreter(data)
        runner.set_tensor(runner.get_input_details()[0]["index"], frame)
        runner.invoke()
        found.append([runner.get_tensor(d["index"]) for d in runner.get_output_details()])
    assert len(found[0]) == len(found[1]) == 6
    for ours, fresh in zip(*found, strict=True):
        assert np.ptp(fresh) > 0
        assert np.abs(ours - fresh).max() < 1e-4
