import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypfed.core.errors import DataError
from polypfed.data.labels import label_text, read_labels


def read(tmp_path, text, size=(200, 100)):
    (tmp_path / "a.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels(tmp_path / "a.txt", size)


def test_by_hand(tmp_path):
    boxes = read(tmp_path, "0 0.5 0.5 0.25 0.5\n0 0.1 0.9 0.2 0.2\n")
    assert boxes.dtype == np.float32
    assert np.allclose(boxes, [[75, 25, 125, 75], [0, 80, 40, 100]])


@pytest.mark.parametrize("text", ["", "\n", "  \n\r\n", b"\xef\xbb\xbf"])
def test_empty_is_a_negative(tmp_path, text):
    assert read(tmp_path, text).shape == (0, 4)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 .5 .5 .2", "4 columns"),
        ("0 .5 .5 .2 .2 .9", "6 columns"),
        ("polyp 10 10 20 20", "not a number"),
        ("0 nan .5 .2 .2", "NaN"),
        ("0 .5 .5 inf .2", "NaN"),
        ("1 .5 .5 .2 .2", "class 1, but there is only class 0"),
        ("-1 .5 .5 .2 .2", "class -1"),
        ("0.5 .5 .5 .2 .2", "class 0.5"),
        ("0 .5 .5 0 .2", "empty"),
        ("0 .5 .5 .2 -.2", "empty"),
        ("0 1.1 .5 .2 .2", "x2=1.2"),
        ("0 .05 .5 .2 .2", "x1=-0.05"),
        ("0 .5 .95 .2 .2", "y2=1.05"),
        ("0 37 44 120 80", "outside"),
    ],
)
def test_each_bad_line_is_named(tmp_path, line, problem):
    with pytest.raises(DataError, match=problem) as caught:
        read(tmp_path, f"0 .5 .5 .5 .5\n\n{line}\n")
    assert caught.value.where == f"{tmp_path / 'a.txt'}, line 3"


def test_duplicate_rows(tmp_path):
    with pytest.raises(DataError, match="same box as line 1"):
        read(tmp_path, "0 .5 .5 .2 .2\n0 0.50 .5 .20 .2\n")


def test_not_text(tmp_path):
    with pytest.raises(DataError, match="not a text file"):
        read(tmp_path, b"\xff\xd8\xff\xe0")


def test_edges_of_other_tools_are_clipped(tmp_path):
    assert read(tmp_path, "0 0.500000 0.5 1.000001 1.0")[0].tolist() == [0, 0, 200, 100]


sides = st.integers(4, 4000)


@given(st.data(), sides, sides)
def test_written_boxes_end_inside_and_are_stable(tmp_path_factory, data, width, height):
    edge = st.floats(0, 1, width=32)
    xs, ys = sorted([data.draw(edge), data.draw(edge)]), sorted([data.draw(edge), data.draw(edge)])
    box = np.array([[xs[0] * width, ys[0] * height, xs[1] * width, ys[1] * height]], np.float32)
    if min(box[0, 2:] - box[0, :2]) < 0.5:
        return
    text = label_text(box, (width, height))
    cx, cy, w, h = (round(float(v) * 1e6) for v in text.split()[1:])
    assert 2 * cx - w >= 0
    assert 2 * cx + w <= 2_000_000
    assert 2 * cy - h >= 0
    assert 2 * cy + h <= 2_000_000
    path = tmp_path_factory.mktemp("labels", numbered=True) / "a.txt"
    path.write_text(text)
    again = read_labels(path, (width, height))
    assert np.abs(again - box).max() <= 3e-6 * max(width, height)
    assert label_text(again, (width, height)) == text


def test_too_small_and_equal_boxes(tmp_path):
    with pytest.raises(DataError, match="too small"):
        label_text(np.array([[1, 1, 1.001, 5]], np.float32), (4000, 4000))
    with pytest.raises(DataError, match="the same"):
        label_text(np.array([[1, 1, 3, 3], [1, 1, 3, 3]], np.float32), (8, 8))
