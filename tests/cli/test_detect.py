"""`polypfed detect` and `polypfed export` as a user calls them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from polypfed.cli.detect import detect
from polypfed.cli.export import export
from polypfed.core.errors import ConfigError, DataError, MissingExtraError, PolypfedError
from polypfed.core.model import ModelSpec
from polypfed.core.rundir import save_model
from polypfed.detect.patch import patch
from polypfed.detect.template import Template
from tests.runtimes import need_device

need_device()
cv2 = pytest.importorskip("cv2")
MINI = Path(__file__).parents[1] / "detect" / "mini-64.zip"

app = typer.Typer()
app.command("detect")(detect)
app.command("export")(export)


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(done.exception, PolypfedError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def model(tmp_path) -> Path:
    template, rng = Template.open(MINI), np.random.default_rng(1)
    arrays = {}
    for slot in template.blank("fp32").slots:
        out, height, width, deep = slot.shape
        arrays[slot.layer.weight] = rng.normal(0, 0.2, (out, deep, height, width)).astype(np.float32)
        if slot.layer.norm:
            values = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
            arrays |= {f"{slot.layer.norm}.{n}": np.full(out, v, np.float32) for n, v in values.items()}
        else:
            arrays[f"{slot.layer.name}.bias"] = np.zeros(out, np.float32)
    path = tmp_path / "mini.tflite"
    path.write_bytes(patch(template, arrays))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(4):
        pixels = rng.integers(0, 256, (40 + 8 * i, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def test_images_lines_and_pictures(model, folder, tmp_path):
    output = run("detect", folder, "-m", model, "--conf", 0.3, "--jsonl", tmp_path / "d.jsonl", "-o", tmp_path / "out")
    assert output.startswith("4 frames, ")
    rows = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert [r["name"] for r in rows] == ["0.png", "1.png", "2.png", "3.png"]
    assert [r["size"] for r in rows] == [[64, 40 + 8 * i] for i in range(4)]
    for row in rows:
        assert set(row["ms"]) == {"before", "invoke", "after"}
        for x1, y1, x2, y2, confidence in row["boxes"]:
            assert 0 <= x1 <= x2 <= 64
            assert 0 <= y1 <= y2 <= row["size"][1]
            assert 0.3 <= confidence <= row["best"] + 1e-6
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    with pytest.raises(DataError, match="not empty"):
        run("detect", folder, "-m", model, "-o", tmp_path / "out")


def test_a_video_becomes_a_video(model, folder, tmp_path):
    run("detect", folder, "-m", model, "-o", tmp_path / "film.avi")
    output = run("detect", tmp_path / "film.avi", "-m", model, "-o", tmp_path / "again.avi", "--smooth", "--frames", 3)
    assert output.startswith("3 frames")
    capture = cv2.VideoCapture(str(tmp_path / "again.avi"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    capture.release()


def test_lines_on_standard_output_are_alone_there(model, folder):
    done = CliRunner().invoke(app, ["detect", str(folder), "-m", str(model), "--jsonl", "-"])
    assert [json.loads(line)["frame"] for line in done.stdout.splitlines()] == [0, 1, 2, 3]


def test_mistakes_are_one_line(model, folder, tmp_path):
    with pytest.raises(DataError, match="no such file, folder or camera"):
        run("detect", tmp_path / "nowhere", "-m", model)
    with pytest.raises(PolypfedError, match="cannot be read"):
        run("detect", folder, "-m", tmp_path / "none.tflite")
    with pytest.raises(ConfigError, match="no such delegate"):
        run("detect", folder, "-m", model, "--delegate", "/usr/lib/none.so")
    (tmp_path / "bad.tflite").write_bytes(b"TFL3" * 100)
    with pytest.raises(PolypfedError, match="is cut short or damaged"):
        run("detect", folder, "-m", tmp_path / "bad.tflite")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(model, folder):
    with pytest.raises(DataError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        run("detect", folder, "-m", model, "--jsonl", "/dev/full")


@pytest.mark.parametrize("film", ["film.mp4", "film.avi", "film.mkv"])
def test_a_video_that_lost_frames_is_one_line(model, folder, tmp_path, film):
    """No file of that process may grow beyond 2 kB: as on a full disk, OpenCV says nothing of it."""
    code = (
        "import resource, signal, sys; from polypfed.cli import main; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
        "sys.argv[0] = 'polypfed'; main()"
    )
    out = tmp_path / film
    command = [sys.executable, "-c", code, "detect", str(folder), "-m", str(model), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 1, done.stderr
    assert "does not hold all 4 frames. Is the disk full?" in done.stderr
    assert "Traceback" not in done.stderr


def test_export_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYPFED_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("POLYPFED_CONVERTER", raising=False)
    spec = ModelSpec.of({"model.0.conv.weight": np.zeros((16, 3, 6, 6))})
    save_model(tmp_path / "m.safetensors", spec, np.zeros(spec.size, np.float32))
    with pytest.raises(ConfigError, match="int8 needs images"):
        run("export", tmp_path / "m.safetensors", "--precision", "int8")
    with pytest.raises((MissingExtraError, ConfigError), match=r"converter"):
        run("export", tmp_path / "m.safetensors", "-o", tmp_path / "out.tflite")
    with pytest.raises(ConfigError, match="no such form"):
        run("export", tmp_path / "m.safetensors", "--format", "coreml")
    assert not (tmp_path / "out.tflite").exists()
