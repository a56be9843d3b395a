"""The lean detector against the torch model it came from; letterbox, decoding, suppression against plain ones."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.core.errors import ConfigError
from polypfed.detect.heads import BINS, Level, suppress
from polypfed.detect.litert import Letterbox, LiteRTDetector
from polypfed.detect.metrics import box_iou
from polypfed.detect.patch import patch
from polypfed.detect.quantize import quantize
from polypfed.detect.runtime import Delegate
from polypfed.detect.tflite import ModelFileError

cv2 = pytest.importorskip("cv2")
RNG = np.random.default_rng(0)


def slow_decode(model, frame, conf, iou):
    """Boxes and scores of a torch model, cell by cell, in 64-bit floats."""
    import torch

    with torch.no_grad():
        outputs = model(torch.from_numpy(frame[None] / np.float32(255)).permute(0, 3, 1, 2))
    rows = []
    for number in range(0, len(outputs), 2):
        boxes, scores = (o[0].double().numpy() for o in outputs[number : number + 2])
        stride = 64 // scores.shape[1]
        for row in range(scores.shape[1]):
            for column in range(scores.shape[2]):
                if scores[0, row, column] >= conf:
                    bins = boxes[:, row, column].reshape(4, BINS)
                    share = np.exp(bins) / np.exp(bins).sum(1, keepdims=True)
                    left, top, right, bottom = (share * np.arange(BINS)).sum(1)
                    x, y = column + 0.5, row + 0.5
                    box = [(x - left) * stride, (y - top) * stride, (x + right) * stride, (y + bottom) * stride]
                    rows.append([float(scores[0, row, column]), *box])
    rows.sort(key=lambda r: -r[0])
    kept: list = []
    for row in rows:
        if all(box_iou([row[1:]], [other[1:]])[0, 0] <= iou for other in kept):
            kept.append(row)
    return np.array([r[1:] for r in kept]).reshape(-1, 4).clip(0, 64), np.array([r[0] for r in kept])


def test_same_boxes_as_the_torch_model(mini, template, learned, discs, litert):
    import torch

    model = mini.Mini().eval()
    model.load_state_dict({n: torch.from_numpy(a) for n, a in learned.items()}, strict=False)
    detector = LiteRTDetector(patch(template, learned), conf=0.05, iou=0.6)
    count = 0
    for frame in discs[0][:20]:
        boxes, scores = slow_decode(model, frame, 0.05, 0.6)
        found = detector(frame)
        assert found.confidence == pytest.approx(scores, abs=1e-5)
        assert found.xyxy == pytest.approx(boxes, abs=1e-3)
        count += len(found)
    assert count > 15
    assert set(detector.times) == {"before", "invoke", "after"}


def test_int8_uses_the_same_code(mini, template, learned, discs, litert):
    frames = discs[0][:40]
    exact = LiteRTDetector(patch(template, learned), conf=0.3)
    whole = LiteRTDetector(quantize(template, learned, frames[:8]), conf=0.3)
    assert (exact.precision, whole.precision) == ("float", "int8")
    for a, b in zip(exact.detect(frames), whole.detect(frames), strict=True):
        if a.best > 0.6:
            assert box_iou(a.xyxy[:1], b.xyxy[:1])[0, 0] > 0.7
            assert b.best == pytest.approx(a.best, abs=0.2)


def test_confidences_on_the_grid_of_int8_are_compared_as_floats():
    level = Level(0, 1, 8, 4, (1.0, 0), (1 / 256, -128))
    scores = np.arange(-128, 128, dtype=np.int8).reshape(1, 16, 16, 1)
    for least in (0.001, 0.25, 0.5, 0.7, 0.999, 1.0, *(np.arange(256) / 256)[1::37]):
        cells, confidence = level.candidates(scores, float(least))
        wanted = np.flatnonzero(np.arange(256) / 256 >= np.float32(least))
        assert cells.tolist() == wanted.tolist(), least
        assert confidence.tolist() == (wanted / 256).tolist()


def test_several_classes_take_the_best():
    level = Level(0, 1, 8, 2, (1.0, 0), (1.0, 0))
    scores = np.array([[0.1, 0.9], [0.2, 0.1]], np.float32).reshape(1, 1, 2, 2)
    cells, confidence = level.candidates(scores, 0.15)
    assert cells.tolist() == [0, 1]
    assert confidence == pytest.approx([0.9, 0.2])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.sampled_from([0.3, 0.5, 0.7]))
def test_suppression_is_that_of_torchvision(seed, count, iou):
    ops = pytest.importorskip("torchvision.ops")
    import torch

    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 50, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 40, (count, 2))], 1).astype(np.float32)
    scores = rng.permutation(np.linspace(0.1, 0.9, count)).astype(np.float32)
    wanted = ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), iou).tolist()
    assert suppress(boxes, scores, iou).tolist() == wanted
    assert suppress(boxes, scores, iou, most=3).tolist() == wanted[:3]


def test_linear_letterbox_is_that_of_ultralytics():
    from polypfed.core.errors import MissingExtraError
    from polypfed.detect.offline import ultralytics

    try:
        ultralytics()
    except MissingExtraError as missing:
        pytest.skip(str(missing))
    from ultralytics.data.augment import LetterBox

    reference = LetterBox((64, 64), auto=False, stride=32)
    for shape in ((48, 64), (64, 51), (100, 37), (33, 65), (20, 30), (64, 64), (128, 160)):
        image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
        box = Letterbox(64, "linear")
        box(image)
        assert (box.square == reference(image=image)).all(), shape


def test_area_letterbox_is_that_of_training():
    from polypfed.detect.letterbox import shrink, square

    for shape, slack in (((48, 64), 0), ((256, 256), 1), ((90, 100), 0), ((20, 30), 0), ((240, 300), None)):
        image = cv2.GaussianBlur(RNG.integers(0, 256, (*shape, 3), dtype=np.uint8), (0, 0), 2)
        wanted = np.empty((64, 64, 3), np.uint8)
        place = square(shrink(image, 64), wanted, (shape[1], shape[0]))
        area, linear = Letterbox(64), Letterbox(64, "linear")
        assert area(image) == place, shape
        linear(image)
        far, farther = (np.abs(box.square.astype(int) - wanted) for box in (area, linear))
        if slack is None:
            assert far.mean() < farther.mean() / 2
        else:
            assert far.max() <= slack, shape


def test_the_border_is_grey_again_when_the_geometry_changes():
    box = Letterbox(64)
    box(np.full((64, 64, 3), 200, np.uint8))
    box(np.full((32, 64, 3), 9, np.uint8))
    assert np.unique(box.square[:16]).tolist() == [114]
    box(np.full((64, 32, 3), 9, np.uint8))
    assert np.unique(box.square[:, :16]).tolist() == [114]
    assert np.unique(box.square[:, 16:48]).tolist() == [9]


def test_boxes_are_in_pixels_of_the_frame(template, learned, discs, litert):
    detector = LiteRTDetector(patch(template, learned), conf=0.5)
    frame = next(f for f in discs[0] if len(detector(f)) == 1)
    one = detector(frame)
    large = np.zeros((128, 256, 3), np.uint8) + 114
    large[:, 64:192] = np.repeat(np.repeat(frame, 2, 0), 2, 1)
    wide = LiteRTDetector(patch(template, learned), conf=0.2)(large)
    assert (wide.xyxy <= [256, 128, 256, 128]).all()
    twice = LiteRTDetector(patch(template, learned), conf=0.5)(np.repeat(np.repeat(frame, 2, 0), 2, 1))
    assert twice.xyxy == pytest.approx(2 * one.xyxy, abs=1e-2)
    assert twice.best == pytest.approx(one.best, abs=1e-4)


def test_bad_settings_and_files(template, arrays, litert, tmp_path):
    model = patch(template, arrays)
    for wrong in ({"conf": 0.0}, {"iou": 1.5}, {"threads": 0}, {"resize": "cubic"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            LiteRTDetector(model, **wrong)
    detector = LiteRTDetector(model)
    for frame in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(ConfigError, match="a frame is"):
            detector(frame)
    with pytest.raises(ModelFileError, match="cannot be read"):
        LiteRTDetector(tmp_path / "none.tflite")
    graph = template.blank("fp32").graph
    with pytest.raises(ModelFileError, match="does not have the raw heads"):
        LiteRTDetector(graph.with_outputs([graph.outputs[0]]))


def test_an_operator_the_runtime_lacks(template, arrays, litert):
    """Version 99 of the enlargement: the error names the file, the operators and the way out."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    data = bytearray(patch(template, arrays))
    codes = schema.Model.GetRootAs(data, 0)
    for number in range(codes.OperatorCodesLength()):
        code = codes.OperatorCodes(number)
        if code.Version() > 1:
            place = code._tab.Pos + code._tab.Offset(8)
            data[place : place + 4] = (99).to_bytes(4, "little")
    with pytest.raises(ModelFileError, match=r"model: .* cannot run it .*v99.*: update the runtime"):
        LiteRTDetector(bytes(data))


def test_delegates(template, arrays, litert, tmp_path):
    model = patch(template, arrays)
    with pytest.raises(ConfigError, match="no such delegate"):
        LiteRTDetector(model, delegate=Delegate("/usr/lib/libvx_delegate_.so"))
    text = tmp_path / "text.so"
    text.write_text("no library")
    with pytest.raises(ConfigError, match="not a library this machine can load"):
        LiteRTDetector(model, delegate=Delegate(str(text)))

    real = next(word for word in Path("/proc/self/maps").read_text().split() if "/libc.so" in word)
    with pytest.raises(ConfigError, match="has no tflite_plugin_create_delegate"):
        LiteRTDetector(model, delegate=Delegate(real))


def test_no_torch_in_the_process(template, arrays, litert, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(patch(template, arrays))
    program = f"""
import sys, numpy as np
from polypfed.detect.litert import LiteRTDetector
from polypfed.detect.template import Template
from polypfed.detect.adapt import adapt
LiteRTDetector({str(path)!r})(np.zeros((48, 64, 3), np.uint8))
heavy = [m for m in ("torch", "ultralytics", "torchvision", "tensorflow", "flwr", "nvflare", "pydantic", "matplotlib")
         if m in sys.modules]
assert not heavy, heavy
"""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr


def test_memory_stays_flat(template, arrays, litert):
    detector = LiteRTDetector(patch(template, arrays), conf=0.001)
    frames = [RNG.integers(0, 256, (80, 100 + i, 3), dtype=np.uint8) for i in range(2)]

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    for i in range(300):
        detector(frames[i % 2])
    before = resident()
    for i in range(1000):
        detector(frames[i % 2])
    assert resident() - before < 8e6
