"""The device: models that change while it infers, models that may not serve, disks that are full, sources that fail."""

import logging
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from polypfed.clients.device import Device, Inbox, serve
from polypfed.core.errors import DataError
from polypfed.core.model import ModelSpec
from polypfed.core.rundir import save_model
from polypfed.detect.agreement import Limits
from polypfed.detect.template import Template
from tests.boards import TEMPLATE, arrays
from tests.runtimes import need_device

need_device()

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def template() -> Template:
    return Template.open(TEMPLATE)


def frame() -> np.ndarray:
    return RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)


class Kept:
    def __init__(self, fail: bool = False) -> None:
        self.rows: list[tuple[float, str, bool]] = []
        self.fail = fail

    def add(self, pixels, confidence, model, *, kept=True, name=""):
        if self.fail and kept:
            raise DataError("cannot be written", where="disk")
        self.rows.append((confidence, model, kept))
        return "id"


def test_hard_frames_are_kept_with_the_version_that_saw_them(template):
    store = Kept()
    device = Device(template, store)
    with pytest.raises(DataError, match="no model serves yet"):
        device(frame())
    assert device.adopt("round-1", arrays(template, -1.0)).precision == "fp32"  # nothing to compare on yet
    for _ in range(3):
        assert device(frame()).best == pytest.approx(0.2689, abs=1e-3)
    device.adopt("round-2", arrays(template, 3.0))
    for _ in range(2):
        assert device(frame()).best == pytest.approx(0.9526, abs=1e-3)
    assert [row[1:] for row in store.rows] == [("round-1", True)] * 3 + [("round-2", False)] * 2
    assert (device.counts["frames"], device.counts["hard"], device.counts["models"]) == (5, 3, 2)


def test_of_hard_frames_in_a_row_some_are_kept(template):
    store = Kept()
    device = Device(template, store, every=4)
    device.adopt("r", arrays(template, -1.0))
    for _ in range(9):
        device(frame())
    assert [kept for *_, kept in store.rows] == [True, False, False, False] * 2 + [True]


def test_with_frames_seen_the_model_is_compared(template):
    device = Device(template, limits=Limits(agreement=0.9, difference=0.2, boxes=0))
    device.adopt("r1", arrays(template, -1.0))
    for _ in range(40):
        device(frame())
    made = device.adopt("r2", arrays(template, 1.0))
    assert made.precision == "int8"
    assert made.agreement.frames >= 20
    device(frame())
    assert (device.version, device.adapted) == ("r2", made)


def test_without_frames_fp32_serves_until_there_are_some(template):
    device = Device(template, limits=Limits(agreement=0.9, difference=0.2, boxes=0))
    device.adopt("r1", arrays(template, -1.0))
    device(frame())
    assert (device.adapted.precision, device.settle()) == ("fp32", None)
    for _ in range(48):
        device(frame())
    assert device.settle().precision == "int8"
    device(frame())
    assert (device.version, device.adapted.precision, device.settle()) == ("r1", "int8", None)


def test_a_bad_model_changes_nothing(template, caplog):
    device = Device(template)
    device.adopt("good", arrays(template, 3.0))
    device(frame())
    broken = arrays(template, 3.0)
    broken["stem.bn.running_var"] = np.full(8, np.nan, np.float32)
    assert device.adopt("bad", broken) is None
    assert device.adopt("other", {"x.conv.weight": np.zeros((1, 1, 1, 1), np.float32)}) is None
    device(frame())
    assert device.version == "good"
    assert device.counts["refused"] == 2
    assert "model bad cannot serve, good goes on" in caplog.text


def test_a_full_disk_costs_samples_only(template, caplog):
    device = Device(template, Kept(fail=True))
    device.adopt("r", arrays(template, -1.0))
    assert len(device(frame()))
    assert (device.counts["errors"], device.counts["kept"], device.counts["frames"]) == (1, 0, 1)
    assert "a frame was not kept" in caplog.text


def save(template: Template, path: Path, score: float) -> None:
    values = arrays(template, score)
    spec = ModelSpec.of(values)
    save_model(path, spec, spec.pack(values))


def test_the_service_changes_models_between_frames(template, tmp_path):
    save(template, tmp_path / "round-1.safetensors", -1.0)
    device, versions = Device(template), []

    def frames():
        begin = time.monotonic()
        for _ in range(100_000):
            yield SimpleNamespace(pixels=frame(), name="f")
            if versions[-1] == "round-2" or time.monotonic() - begin > 20:
                return
            if len(versions) == 5:
                save(template, tmp_path / "round-2.safetensors", 3.0)

    serve(device, frames, Inbox(tmp_path), look=0.05, shown=lambda f, found: versions.append(device.version))
    assert versions[0] == "round-1"
    assert versions[-1] == "round-2"
    assert sorted(versions) == versions
    assert device.counts["models"] == 2


def test_a_failing_source_is_opened_again_and_damaged_models_are_left(template, tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    save(template, tmp_path / "a.safetensors", 3.0)
    device, opened, stop = Device(template), [], threading.Event()

    def frames():
        opened.append(1)
        yield SimpleNamespace(pixels=frame(), name="f")
        if len(opened) == 1:
            (tmp_path / "b.safetensors").write_bytes(b"no model")
            time.sleep(0.2)
            raise DataError("gives no more frames", where="camera 0")
        if len(opened) == 3:
            stop.set()
        raise DataError("gives no more frames", where="camera 0")

    serve(device, frames, Inbox(tmp_path), stop=stop, look=0.02, pause=0.0)
    assert len(opened) == 3
    assert device.counts["frames"] == 3
    assert device.version == "a"
    assert "a new model cannot be read" in caplog.text
    assert "models" not in {t.name for t in threading.enumerate()}


@pytest.mark.slow
def test_ten_thousand_frames_leak_nothing(template):
    device = Device(template, Kept(), recent=8)
    device.adopt("r", arrays(template, 3.0))
    device.store.rows = SimpleNamespace(append=lambda row: None)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    if not sys.platform.startswith("linux"):
        pytest.skip("/proc")
    some = [frame() for _ in range(16)]
    for i in range(500):
        device(some[i % 16])
    before = resident()
    for i in range(10_000):
        device(some[i % 16])
    assert resident() - before < 6e6


def test_the_device_loads_no_torch():
    import os
    import subprocess

    code = "import polypfed.clients.device, sys; assert not {'torch', 'flwr', 'nvflare', 'pydantic'} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
