"""The adapter around ultralytics: offline, deterministic, boxes in the original image's pixels."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="install polypfed[yolo]")

import torch

from polypfed.core.errors import ConfigError
from polypfed.detect import Detections, yolo
from polypfed.detect.letterbox import Placement, shrink, square

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model():
    return yolo.build("yolov5n", seed=3)


def images(count: int = 3) -> list[np.ndarray]:
    sizes = [(40, 64), (64, 30), (100, 120), (64, 64)]
    return [RNG.integers(0, 255, (*sizes[i % 4], 3), dtype=np.uint8) for i in range(count)]


def test_build_is_deterministic_and_leaves_the_generators_alone(model):
    torch.manual_seed(5)
    expected = torch.rand(1).item()
    torch.manual_seed(5)
    again, other = yolo.build("yolov5n", seed=3), yolo.build("yolov5n", seed=4)
    assert torch.rand(1).item() == expected
    first, same, differs = (next(m.parameters()) for m in (model, again, other))
    assert torch.equal(first, same)
    assert not torch.equal(first, differs)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(("arch", "millions"), [("yolov5n", 2.51), ("yolov5s", 9.12)])
def test_size_of_the_architectures(arch, millions):
    assert sum(p.numel() for p in yolo.build(arch).parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_unknown_names_and_sizes():
    with pytest.raises(ConfigError, match=r"unknown architecture 'yolov9'\. Known: yolov5n"):
        yolo.build("yolov9")
    with pytest.raises(ConfigError, match="prior"):
        yolo.build(prior=1.0)
    for size in (0, 100, -32, 64.0):
        with pytest.raises(ConfigError, match="multiple of 32"):
            yolo.check_size(size)


def test_an_untrained_model_is_everywhere_as_unsure_as_its_prior():
    best = yolo.best_confidence(yolo.build(prior=0.02), images(), 64)
    assert best == pytest.approx(0.02, rel=0.2)


def test_best_confidence_is_that_of_the_best_detection(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for level in model.model[-1].cv3:
            level[-1].weight.normal_(std=30)
    some = images(5)
    best = yolo.best_confidence(model, some, 64, batch=2)
    assert best == pytest.approx([d.best for d in yolo.predict(model, some, 64, batch=2)], abs=1e-7)
    assert best.dtype == np.float32
    assert len(set(best.tolist())) > 1
    assert yolo.best_confidence(model, [], 64).shape == (0,)


class Fixed(torch.nn.Module):
    """Answers with two overlapping boxes and one apart, in pixels of a 64-px square."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        rows = torch.tensor([[32, 32, 16, 16, 0.9], [33, 32, 16, 16, 0.8], [10, 32, 4, 4, 0.3], [32, 32, 9, 9, 0.0005]])
        return rows.T.expand(len(x), -1, -1).clone(), None


def test_predict_gives_pixels_of_the_original_image():
    wide = np.zeros((64, 128, 3), np.uint8)  # halved to 64 x 32, 16 rows of grey above and below
    (found,) = yolo.predict(Fixed(), [wide], 64)
    assert found.confidence.tolist() == pytest.approx([0.9, 0.3])  # 0.8 is suppressed, 0.0005 too weak
    assert found.xyxy.tolist() == [[48, 16, 80, 48], [16, 28, 24, 36]]
    assert len(yolo.predict(Fixed(), [wide], 64, conf=0.5)[0]) == 1
    assert len(yolo.predict(Fixed(), [wide], 64, iou=0.95)[0]) == 3


def test_boxes_are_clipped_to_the_image():
    place = Placement((0.5, 0.5), (0, 16), (128, 64))
    assert place.back(np.array([[-4.0, 0.0, 70.0, 64.0]])).tolist() == [[0, 0, 128, 64]]


def test_suppression_does_not_stop_when_the_clock_says_so(monkeypatch):
    ticks = iter(range(0, 10**6, 1000))  # every look at the clock is a thousand seconds later
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    found = yolo.predict(Fixed(), [np.zeros((64, 64, 3), np.uint8)] * 4, 64)
    assert [len(f) for f in found] == [2] * 4


def test_square_and_shrink():
    image = RNG.integers(0, 255, (30, 60, 3), dtype=np.uint8)
    out = np.zeros((64, 64, 3), np.uint8)
    place = square(image, out)
    assert (out[17:47, 2:62] == image).all()
    assert place == Placement((1.0, 1.0), (2, 17), (60, 30))
    assert out.sum() == image.sum() + 114 * 3 * (64 * 64 - 30 * 60)
    assert shrink(image, 60) is image
    assert shrink(image, 32).shape == (16, 32, 3)
    assert shrink(image, 128).shape == (64, 128, 3)
    assert shrink(np.zeros((1, 3000, 3), np.uint8), 64).shape == (1, 64, 3)
    assert np.unique(shrink(np.full((100, 200, 3), 7, np.uint8), 64)).tolist() == [7]
    with pytest.raises(ConfigError, match="does not fit"):
        square(np.zeros((65, 10, 3), np.uint8), out)


def test_loss_trains(model):
    batch = {
        "img": torch.rand(2, 3, 64, 64),
        "batch_idx": torch.zeros(1),
        "cls": torch.zeros(1, 1),
        "bboxes": torch.full((1, 4), 0.5),
    }
    model.train()
    loss = model.loss(batch)[0].sum()
    assert torch.isfinite(loss)
    loss.backward()
    assert next(model.parameters()).grad.abs().sum() > 0


def test_ultralytics_stays_offline_and_out_of_the_users_home(tmp_path: Path):
    program = """
        import socket, sys, os
        def refuse(*a, **k):
            print("NETWORK", a)
            os._exit(3)
        socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
        from polypfed.detect import yolo
        assert "ultralytics" in sys.modules or yolo.build("yolov5n")
        yolo.build("yolov5n")
        from ultralytics.utils import ONLINE, SETTINGS, AUTOINSTALL
        from ultralytics.utils.events import events
        import numpy, torch
        assert repr(numpy.float32([2.25])) == "array([2.25], dtype=float32)"
        assert repr(torch.tensor([1.0])) == "tensor([1.])"
        assert not ONLINE and not AUTOINSTALL and not SETTINGS["sync"] and not events.enabled
        print(os.environ["YOLO_CONFIG_DIR"])
    """
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("YOLO_", "ULTRALYTICS_", "XDG_"))}
    environment |= {"HOME": str(home), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(home.rglob("*")) == []
    assert not Path(done.stdout.split()[-1]).exists()  # its settings folder is gone again


def test_an_import_from_elsewhere_is_noticed(monkeypatch):
    from polypfed.detect import offline

    offline.ultralytics.cache_clear()
    monkeypatch.delenv("YOLO_OFFLINE", raising=False)
    with pytest.raises(ConfigError, match="imported before polypfed could switch its network use off"):
        offline.ultralytics()
    monkeypatch.undo()
    offline.ultralytics()


def test_detections_of_a_negative_image_are_empty():
    (found,) = yolo.predict(Fixed(), [np.zeros((64, 64, 3), np.uint8)], 64, conf=0.95)
    assert isinstance(found, Detections)
    assert found.xyxy.shape == (0, 4)
