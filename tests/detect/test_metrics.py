"""Average precision: hand-worked cases, properties, and ultralytics' own numbers as a second implementation."""

from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.core.errors import DataError
from polypfed.detect import Detections, average_precision, box_iou, detection_metrics, match, mistakes
from polypfed.detect.offline import ultralytics

BOX = [10.0, 10.0, 30.0, 30.0]
NONE = np.zeros((0, 4), np.float32)


def found(*rows: tuple[list[float], float]) -> Detections:
    return Detections(np.array([b for b, _ in rows], np.float32), np.array([c for _, c in rows], np.float32))


def test_iou_of_half_covered_boxes_by_hand():
    iou = box_iou([[0, 0, 10, 10]], [[0, 0, 10, 5], [5, 5, 15, 15], [20, 20, 30, 30]])
    assert iou[0] == pytest.approx([50 / 100, 25 / 175, 0.0], abs=1e-6)


def test_detections_are_put_in_order_of_confidence():
    d = found((BOX, 0.2), ([0, 0, 5, 5], 0.9))
    assert d.confidence.tolist() == pytest.approx([0.9, 0.2])
    assert d.xyxy[0].tolist() == [0, 0, 5, 5]
    assert d.best == pytest.approx(0.9)
    assert Detections().best == 0.0
    assert len(d.above(0.5)) == 1


def test_detections_of_unequal_length_are_refused():
    with pytest.raises(DataError, match="2 boxes but 1"):
        Detections(np.zeros((2, 4)), np.ones(1))


def test_a_true_box_is_given_away_once():
    d = found((BOX, 0.9), (BOX, 0.8))
    assert match(d, [BOX])[:, 0].tolist() == [True, False]
    assert mistakes(d, [BOX]) == (0, 1)
    assert mistakes(Detections(), [BOX]) == (1, 0)


def test_a_weaker_detection_takes_the_box_that_is_left():
    other = [40.0, 40.0, 60.0, 60.0]
    assert mistakes(found((BOX, 0.9), (other, 0.3)), [other, BOX]) == (0, 0)


def test_loose_box_counts_up_to_its_own_iou():
    d = found(([10, 10, 30, 24.4], 0.9))  # IoU 0.72: right at .50 to .70, wrong from .75
    assert match(d, [BOX])[0].tolist() == [True] * 5 + [False] * 5
    m = detection_metrics([d], [[BOX]])
    assert m.map50 == pytest.approx(0.995)
    assert m.map50_95 == pytest.approx(0.995 / 2)


def test_average_precision_by_hand():
    # Two boxes; right, wrong, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1. Envelope: 1 to .5, 2/3 from there.
    # Linear interpolation between recalls .5 (2/3, the last of the two) and 1 (2/3): flat; .5 itself reads 2/3.
    ap = average_precision(np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3]))
    by_hand = (0.49 * 1 + 0.01 * (1 + 2 / 3) / 2) + (0.49 * 2 / 3 + 0.01 * (2 / 3 + 0) / 2)
    assert ap == pytest.approx(by_hand, abs=1e-9)


def test_perfect_detector():
    m = detection_metrics([found((BOX, 0.9)), Detections()], [[BOX], NONE])
    assert (m.precision, m.recall, m.f1) == pytest.approx((1, 1, 1))
    assert (m.map50, m.map50_95) == pytest.approx((0.995, 0.995))  # ultralytics' interpolation ends at .995, not 1


@pytest.mark.parametrize(
    ("answers", "truth"),
    [([Detections()], [[BOX]]), ([found((BOX, 0.9))], [NONE]), ([Detections()] * 2, [NONE] * 2), ([], [])],
    ids=["no predictions", "only negatives, false alarm", "only negatives, silent", "no images"],
)
def test_nothing_to_find_or_nothing_found_is_zero(answers, truth):
    m = detection_metrics(answers, truth)
    assert set(m.as_dict().values()) == {0.0}
    assert list(m.as_dict()) == ["map50", "map50_95", "precision", "recall", "f1"]


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(DataError, match="1 images, but true boxes of 2"):
        detection_metrics([Detections()], [NONE, NONE])


def test_false_alarm_on_a_negative_costs_precision_only_if_it_is_confident():
    sure = detection_metrics([found((BOX, 0.5)), found((BOX, 0.9))], [[BOX], NONE])
    unsure = detection_metrics([found((BOX, 0.9)), found((BOX, 0.5))], [[BOX], NONE])
    assert unsure.map50 == pytest.approx(0.995)
    assert sure.map50 == pytest.approx(0.4975 + 0.0025 * (1 - 0.5) / 0.5, abs=0.01)
    assert sure.map50 < unsure.map50


def random_case(seed: int, images: int = 12) -> tuple[list[Detections], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    answers, truth = [], []
    for _ in range(images):
        corner = rng.uniform(0, 60, (rng.integers(0, 4), 2))
        true = np.concatenate([corner, corner + rng.uniform(5, 40, corner.shape)], 1).astype(np.float32)
        near = true[rng.integers(0, len(true), rng.integers(0, 6))] if len(true) else NONE
        near = near + rng.normal(0, 3, near.shape)
        far = rng.uniform((0, 0, 41, 41), (40, 40, 81, 81), (rng.integers(0, 5), 4))
        boxes = np.concatenate([near, far]).astype(np.float32)
        answers.append(Detections(boxes, rng.permutation(np.linspace(0.01, 0.99, len(boxes)) + rng.uniform(0, 0.009))))
        truth.append(true)
    return answers, truth


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_properties(seed):
    answers, truth = random_case(seed)
    m = detection_metrics(answers, truth)
    assert all(0 <= v <= 1 for v in m.as_dict().values())
    assert m.map50_95 <= m.map50 + 1e-12
    back = detection_metrics(answers[::-1], truth[::-1])
    assert back.map50 == pytest.approx(m.map50, abs=1e-9)  # images may come in any order
    weaker = [Detections(a.xyxy, a.confidence / 2) for a in answers]
    assert detection_metrics(weaker, truth).map50 == pytest.approx(m.map50, abs=1e-9)  # AP only ranks


@pytest.mark.parametrize("seed", range(8))
def test_equals_ultralytics(seed):
    if not find_spec("ultralytics"):
        pytest.skip("ultralytics is not installed")
    ultralytics()
    import torch
    from ultralytics.engine.validator import BaseValidator
    from ultralytics.utils.metrics import ap_per_class
    from ultralytics.utils.metrics import box_iou as torch_iou

    answers, truth = random_case(seed, images=20)
    validator = BaseValidator.__new__(BaseValidator)
    validator.iouv = torch.linspace(0.5, 0.95, 10)
    right = [
        validator.match_predictions(
            torch.zeros(len(a)), torch.zeros(len(t)), torch_iou(torch.from_numpy(t), torch.from_numpy(a.xyxy))
        ).numpy()
        for a, t in zip(answers, truth, strict=True)
    ]
    for mine, true, theirs in zip(answers, truth, right, strict=True):
        assert (match(mine, true) == theirs).all()
    scores = np.concatenate([a.confidence for a in answers])
    boxes = sum(map(len, truth))
    _, _, p, r, f1, ap, *_ = ap_per_class(np.concatenate(right), scores, np.zeros(len(scores)), np.zeros(boxes))
    m = detection_metrics(answers, truth)
    assert (m.map50, m.map50_95) == pytest.approx((ap[0, 0], ap[0].mean()), abs=1e-12)
    assert (m.precision, m.recall, m.f1) == pytest.approx((p[0], r[0], f1[0]), abs=1e-12)
