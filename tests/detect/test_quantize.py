"""INT8 on a trained detector: decisions like fp32's, the failure of the usual calibration, the gate that catches it."""

import numpy as np
import pytest

from polypfed.core.errors import ConfigError, DataError
from polypfed.detect import Detections
from polypfed.detect.adapt import adapt
from polypfed.detect.agreement import Agreement, Limits, compare
from polypfed.detect.patch import patch
from polypfed.detect.quantize import calibrate, quantize, quantized
from polypfed.detect.tflite import ModelFileError, TFLite

pytestmark = pytest.mark.usefixtures("litert")
_LOOSE = Limits(agreement=0.95, difference=0.3, boxes=0.95, ap50=0.02)  # the small net differs a little by processor


def detect(model: bytes, frames) -> list[Detections]:
    from polypfed.detect.litert import LiteRTDetector

    return LiteRTDetector(model, conf=0.001, candidates=None).detect(frames)


@pytest.fixture(scope="module")
def exact(template, learned, discs):
    return detect(patch(template, learned), discs[0])


@pytest.fixture(scope="module")
def calibration(mini):
    rng = np.random.default_rng(77)
    return [mini.disc(rng)[0] for _ in range(32)]


@pytest.fixture(scope="module")
def ranges(template, learned, calibration):
    return calibrate(patch(template, learned), calibration)


def test_the_detector_has_learned_something(exact, discs):
    best = np.array([d.best for d in exact])
    assert (best < 0.3).mean() > 0.1
    assert (best > 0.8).mean() > 0.3
    assert compare(exact, exact, true=discs[1]) == Agreement(300, 1.0, 0.0, 1.0, False, 0.0, 0.0)


def test_int8_decides_as_fp32_does(template, learned, discs, exact, calibration):
    seen = compare(exact, detect(quantize(template, learned, calibration), discs[0]), 0.7, discs[1])
    assert seen.failures(_LOOSE) == []


def test_the_usual_calibration_fails_and_the_gate_sees_it(template, learned, discs, exact, calibration):
    """A moving average of each frame's extremes: the default of common quantisers."""
    float_model = patch(template, learned)
    average: dict[str, tuple[float, float]] = {}
    for frame in calibration:
        for name, (low, high) in calibrate(float_model, [frame]).items():
            old = average.get(name, (low, high))
            average[name] = (0.95 * old[0] + 0.05 * low, 0.95 * old[1] + 0.05 * high)
    seen = compare(exact, detect(quantized(template, learned, average), discs[0]), 0.7, discs[1])
    assert seen.agreement < 0.8
    assert seen.ceiling
    assert len(seen.failures(Limits())) >= 3


def test_ranges_are_the_least_and_largest_of_all_frames(template, learned, calibration, ranges):
    from polypfed.detect.runtime import interpreter

    model = patch(template, learned)
    first = TFLite(model).tensors[TFLite(model).operators[1].outputs[0]]
    some, rest = calibrate(model, calibration[:5]), calibrate(model, calibration[5:])
    assert {n: (min(a[0], rest[n][0]), max(a[1], rest[n][1])) for n, a in some.items()} == ranges
    graph = TFLite(model)
    conv = next(o for o in graph.operators if o.name == "CONV_2D").outputs[0]
    runner = interpreter(graph.with_outputs([conv]))
    values = []
    for frame in calibration:
        runner.set_tensor(graph.inputs[0], frame[None] / np.float32(255))
        runner.invoke()
        values.append(runner.get_tensor(conv))
    assert ranges[graph.tensors[conv].name] == (np.min(values), np.max(values))
    assert first.name


def test_input_and_sigmoids_are_pinned(template, learned, ranges):
    graph = TFLite(quantized(template, learned, ranges))
    assert (graph.scale(graph.inputs[0]), graph.zero_point(graph.inputs[0])) == (np.float32(1 / 255), -128)
    sigmoids = [o.outputs[0] for o in graph.operators if o.name == "LOGISTIC"]
    assert {(graph.scale(i), graph.zero_point(i)) for i in sigmoids} == {(np.float32(1 / 256), -128)}
    for operator in graph.operators:
        if operator.name in ("CONCATENATION", "MAX_POOL_2D", "RESIZE_NEAREST_NEIGHBOR"):
            whole = [i for i in (*operator.inputs, *operator.outputs) if graph.tensors[i].type == 9]
            assert len({(graph.scale(i), graph.zero_point(i)) for i in whole}) == 1


def test_biases_have_the_scale_of_their_products(template, learned, ranges):
    graph = TFLite(quantized(template, learned, ranges))
    for operator in (o for o in graph.operators if o.name == "CONV_2D"):
        before, weight, bias = (graph.tensors[i] for i in operator.inputs)
        scales = [np.frombuffer(graph.data, "<f4", t.scale.length // 4, t.scale.offset) for t in (weight, bias)]
        assert scales[1] == pytest.approx(scales[0] * graph.scale(operator.inputs[0]), rel=1e-6)
        assert np.abs(graph.values(weight).astype(int)).max() == 127
        assert before.type == 9


def test_a_dead_channel_does_not_break_the_file(template, learned, ranges, discs):
    dead = {n: a.copy() for n, a in learned.items()}
    dead["third.conv.weight"][3] = 0
    dead["more.conv.weight"][0] = 1e-30
    found = detect(quantized(template, dead, ranges), discs[0][:5])
    assert len(found) == 5


def test_adapt_takes_int8_and_says_why_not(template, learned, discs, caplog):
    frames, true = discs
    taken = adapt(template, learned, frames[:120], true=true[:120], limits=_LOOSE)
    assert (taken.precision, taken.refused) == ("int8", ())
    assert taken.agreement.frames == 88
    hopeless = Limits(difference=1e-9, agreement=1.0)
    fallen = adapt(template, learned, frames[:60], limits=hopeless)
    assert fallen.precision == "fp32"
    assert [name for name, _ in fallen.refused] == ["int8", "dynamic", "fp16"]
    assert "confidences differ by" in str(fallen)
    assert fallen.model == patch(template, learned)
    half = adapt(template, learned, frames[:60], limits=Limits(difference=0.004, agreement=0.9, boxes=0))
    assert half.precision in ("fp16", "dynamic")
    assert "int8 does not serve" in caplog.text
    assert adapt(template, learned, frames[:60], order=["fp32"]).agreement is None


def test_bad_frames(template, learned, discs):
    with pytest.raises(DataError, match="there are none"):
        quantize(template, learned, [])
    with pytest.raises(DataError, match="the model takes"):
        quantize(template, learned, [np.zeros((32, 64, 3), np.uint8)])
    with pytest.raises(DataError, match="at least one precision"):
        adapt(template, learned, discs[0][:9], order=[])
    with pytest.raises(ConfigError, match="no such precision: int4"):
        adapt(template, learned, discs[0][:9], order=["int4"])
    with pytest.raises(ModelFileError, match="not known"):
        quantized(template, learned, {})


def test_compare_by_hand():
    def found(*best: float) -> list[Detections]:
        return [Detections(np.array([[0, 0, 9, 9]]), np.array([b])) for b in best]

    seen = compare(found(0.9, 0.72, 0.1, 0.69), found(0.8, 0.69, 0.1, 0.71), 0.7)
    assert (seen.frames, seen.agreement, seen.boxes, seen.ceiling) == (4, 0.5, 1.0, False)
    assert seen.largest == pytest.approx(0.1)
    assert seen.difference == pytest.approx(0.03, abs=1e-6)  # of 0.1, 0.03, 0.02, 0 the one below the hundredth
    assert compare(found(*[0.5] * 200), found(*[0.5] * 199, 0.1)).difference == 0.0
    assert (
        compare(found(0.7), [Detections()], 0.7).failures(Limits())[2] == "0.000 of the boxes are found again, not 0.95"
    )
    assert compare(found(0.66, 0.5), found(0.51, 0.5), 0.7).ceiling
    with pytest.raises(DataError, match="1 frames of one model, 2 of the other"):
        compare(found(0.1), found(0.1, 0.2))
