"""Frames from folders, videos and things that are not there."""

import numpy as np
import pytest
from PIL import Image

from polypfed.core.errors import DataError
from polypfed.detect.sources import Source

cv2 = pytest.importorskip("cv2")


def picture(value: int, size=(40, 30)) -> Image.Image:
    return Image.fromarray(np.full((*size[::-1], 3), [value, 10, 200 - value], np.uint8))


def test_a_folder_in_order_without_its_damaged_files(tmp_path, caplog):
    (tmp_path / "deep").mkdir()
    picture(30).save(tmp_path / "b.png")
    picture(10).save(tmp_path / "a.jpg")
    picture(90).convert("L").save(tmp_path / "deep" / "c.png")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    (tmp_path / "notes.txt").write_text("no image")
    found = list(Source(str(tmp_path)).frames())
    assert [(f.number, f.name) for f in found] == [(0, "a.jpg"), (1, "b.png"), (2, "deep/c.png")]
    assert found[1].pixels[0, 0].tolist() == [30, 10, 170]
    assert found[2].pixels.shape == (30, 40, 3)
    assert "broken.jpg: cannot be read" in caplog.text
    assert [f.name for f in Source(str(tmp_path / "b.png")).frames()] == ["b.png"]


def test_a_video_gives_its_frames_and_times(tmp_path):
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for i in range(7):
        writer.write(np.full((48, 64, 3), [20 * i, 10, 200], np.uint8))  # BGR
    writer.release()
    found = list(Source(str(path)).frames())
    assert [f.number for f in found] == list(range(7))
    assert found[3].pixels[20, 20] == pytest.approx([200, 10, 60], abs=12)
    assert found[3].seconds == pytest.approx(0.3, abs=0.11)


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(DataError, match="no such file, folder or camera"):
        next(Source(str(tmp_path / "none.mp4")).frames())
    with pytest.raises(DataError, match="holds no images"):
        next(Source(str(tmp_path)).frames())
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of its images"):
        next(Source(str(tmp_path)).frames())
    (tmp_path / "film.mp4").write_bytes(b"no film" * 100)
    with pytest.raises(DataError, match="this video cannot be opened"):
        next(Source(str(tmp_path / "film.mp4")).frames())
    with pytest.raises(DataError, match="this camera cannot be opened"):
        next(Source("97", retries=0).frames())


def test_kinds():
    assert Source("0").kind == Source("/dev/video3").kind == "camera"
    assert Source("rtsp://10.0.0.1/live").live
    assert Source("/tmp").kind == "images"


class Unplugged:
    """A camera that gives two frames whenever it is opened; for a while it cannot be opened."""

    opened = 0

    def __init__(self, where):
        assert where == 3
        Unplugged.opened += 1
        self.left = 0 if Unplugged.opened in (2, 3) else 2

    def isOpened(self):
        return self.left > 0

    def read(self):
        self.left -= 1
        return self.left >= 0, np.zeros((4, 4, 3), np.uint8)

    def get(self, _):
        return 0.0

    def release(self):
        pass


def test_an_unplugged_camera_is_opened_again(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Unplugged)
    frames = Source("3", retries=3, pause=0.0).frames()
    assert [next(frames).number for _ in range(6)] == [0, 1, 2, 3, 4, 5]
    monkeypatch.setattr(Unplugged, "isOpened", lambda self: False)
    with pytest.raises(DataError, match="gives no more frames after 6"):
        next(frames)
