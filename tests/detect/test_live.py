"""The live view: what it answers, to whom, and that a browser shows it."""

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from polypfed.core.errors import ConfigError
from polypfed.detect import Detections
from polypfed.detect.draw import annotate
from polypfed.detect.live import LiveView

cv2 = pytest.importorskip("cv2")


def get(url: str, host: str | None = None) -> tuple[int, dict, bytes]:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {}, error.read()


def test_page_state_and_frame():
    with LiveView(model="yolov5n-r3", precision="int8") as view:
        assert view.url.startswith("http://127.0.0.1:")
        assert get(view.url + "frame.jpg")[0] == 404
        assert json.loads(get(view.url + "state")[2])["number"] is None
        image = np.full((48, 64, 3), [250, 20, 60], np.uint8)
        view.show(image, 7, 1, 0.834567, 31.25)
        state = json.loads(get(view.url + "state")[2])
        assert (state["number"], state["confidence"], state["fps"], state["model"]) == (7, 0.8346, 31.25, "yolov5n-r3")
        code, headers, body = get(view.url + "frame.jpg?7")
        decoded = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert (code, headers["Content-Type"], headers["Cache-Control"]) == (200, "image/jpeg", "no-store")
        assert decoded[20, 20] == pytest.approx([250, 20, 60], abs=6)
        code, headers, body = get(view.url)
        assert code == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert b"http://" not in body
        assert b"https://" not in body


def test_the_picture_is_that_of_the_figures():
    """Frames go on between the two requests of the page."""
    with LiveView() as view:
        view.show(np.full((8, 8, 3), 250, np.uint8), 0, 1, 0.9, 25.0)
        assert json.loads(get(view.url + "state")[2])["number"] == 0
        view.show(np.zeros((8, 8, 3), np.uint8), 1, 0, 0.0, 25.0)
        bright, dark = (cv2.imdecode(np.frombuffer(get(view.url + "frame.jpg")[2], np.uint8), 1) for _ in range(2))
        assert bright.min() > 200
        assert dark.max() < 50


def test_only_this_machine_may_look():
    with LiveView() as view:
        view.show(np.zeros((8, 8, 3), np.uint8), 0, 0, 0.0, 1.0)
        port = view.url.rstrip("/").rpartition(":")[2]
        for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", ""):
            if host:
                assert get(view.url + "frame.jpg", host)[0] == 403, host
        assert get(view.url + "frame.jpg", f"localhost:{port}")[0] == 200
        assert get(view.url + "../../etc/passwd")[0] == 404
        with pytest.raises(ConfigError, match="cannot be used"):
            LiveView(int(port))


def test_it_ends_with_the_block():
    with LiveView() as view:
        url = view.url
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=2)


def test_boxes_are_drawn_where_they_are():
    image = np.zeros((100, 200, 3), np.uint8)
    drawn = annotate(image, Detections(np.array([[50, 40, 150, 90], [5, 5, 20, 20]]), np.array([0.9, 0.3])), 0.7, "r3")
    assert image.max() == 0
    assert drawn.shape == image.shape
    assert drawn[90, 100, 1] > 150  # green below
    assert drawn[90, 100, 0] < 120
    assert drawn[20, 12, 0] > 150  # amber
    assert drawn[65, 100].max() == 0  # nothing inside


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_a_browser_shows_it(tmp_path: Path):
    rng = np.random.default_rng(0)
    frame = cv2.GaussianBlur(rng.integers(60, 200, (256, 320, 3), dtype=np.uint8), (0, 0), 6)
    found = Detections(np.array([[60, 60, 180, 170]]), np.array([0.83]))
    with LiveView(model="yolov5n-round-3", precision="int8") as view:
        view.show(annotate(frame, found), 41, 1, 0.83, 27.4)
        shot = tmp_path / "shot.png"
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,600"]
        dom = subprocess.run(
            [*command, "--virtual-time-budget=2000", "--dump-dom", view.url], capture_output=True, text=True, timeout=90
        ).stdout
        subprocess.run(
            [*command, "--virtual-time-budget=2000", f"--screenshot={shot}", view.url], capture_output=True, timeout=90
        )
    for piece in ("yolov5n-round-3", "int8", ">0.83<", ">27.4 FPS<", ">41<", "frame.jpg?41"):
        assert piece in dom, piece
    pixels = cv2.imread(str(shot))
    assert pixels.shape[:2] == (600, 1000)
    green = (np.abs(pixels.astype(int) - [90, 220, 60]).max(2) < 40).sum()
    assert green > 500  # the box and the bar
    if keep := os.environ.get("POLYPFED_SHOTS"):
        shutil.copy(shot, Path(keep) / "live.png")
