import numpy as np
import pytest

from polypfed.data.masks import MaskRules, components, mask_boxes


def mask_of(*boxes, size=(100, 100)):
    mask = np.zeros(size[::-1], np.uint8)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = 255
    return mask


def test_by_hand():
    boxes, specks = mask_boxes(mask_of((10, 20, 30, 25), (50, 50, 90, 99)))
    assert boxes.dtype == np.float32
    assert boxes.tolist() == [[10, 20, 30, 25], [50, 50, 90, 99]]
    assert specks == 0


def test_corners_connect():
    pixels = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], bool)
    boxes, areas = components(pixels)
    assert boxes.tolist() == [[0, 0, 2, 3]]
    assert areas.tolist() == [3]


def test_empty_and_full():
    assert components(np.zeros((5, 7), bool))[0].shape == (0, 4)
    assert components(np.ones((5, 7), bool))[0].tolist() == [[0, 0, 7, 5]]


def test_the_threshold_is_above_127():
    assert mask_boxes(np.full((20, 20), 127, np.uint8))[0].shape == (0, 4)
    assert mask_boxes(np.full((20, 20), 128, np.uint8))[0].shape == (1, 4)
    assert mask_boxes(np.full((20, 20), 90, np.uint8), MaskRules(threshold=80))[0].shape == (1, 4)


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((0, 0, 4, 4), True),  # 16 px
        ((0, 0, 5, 3), False),  # 15 px
        ((0, 0, 2, 50), False),  # 2 px wide
        ((0, 0, 50, 2), False),  # 2 px high
        ((0, 0, 3, 50), True),
    ],
)
def test_specks_by_pixels_and_sides(box, kept):
    boxes, specks = mask_boxes(mask_of(box))
    assert (len(boxes), specks) == (int(kept), int(not kept))


def test_specks_by_share():
    """0.02 % of 1000 x 1000 are 200 pixels."""
    boxes, specks = mask_boxes(mask_of((0, 0, 10, 20), (500, 500, 510, 519), size=(1000, 1000)))
    assert boxes.tolist() == [[0, 0, 10, 20]]
    assert specks == 1


def test_agrees_with_opencv():
    cv2 = pytest.importorskip("cv2", reason="the yolo extra brings OpenCV")
    rng = np.random.default_rng(0)
    for _ in range(500):
        pixels = rng.random(rng.integers(1, 30, 2)) < rng.random()
        _, _, stats, _ = cv2.connectedComponentsWithStats(pixels.astype(np.uint8), connectivity=8)
        expected = sorted([x, y, x + w, y + h, area] for x, y, w, h, area in stats[1:].tolist())
        boxes, areas = components(pixels)
        assert sorted([*box, area] for box, area in zip(boxes.tolist(), areas.tolist(), strict=True)) == expected


def test_a_comb_is_joined_late():
    """Teeth that only meet in the last row: unions run through many labels."""
    pixels = np.zeros((40, 41), bool)
    pixels[:, ::2] = True
    pixels[-1] = True
    assert components(pixels)[0].tolist() == [[0, 0, 41, 40]]
