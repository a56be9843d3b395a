"""A live view in the browser, for this machine only: the newest frame, its boxes, confidence, speed and model.

It keeps nothing.
"""

import json
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed.core.extras import require
from polypfed.core.web import HTML, JSON, Answer, Asked, WebServer

Pixels = NDArray[np.uint8]
_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>polypfed live</title>
<meta name="viewport" content="width=device-width,initial-scale=1">
<style>
:root{color-scheme:dark}*{box-sizing:border-box}
body{margin:0;background:#111417;color:#e8ebee;font:16px/1.4 system-ui,sans-serif;
display:flex;flex-wrap:wrap;min-height:100vh}
main{flex:1 1 480px;display:flex;min-height:60vh;background:#000}
img{width:100%;height:100%;max-height:100vh;object-fit:contain}
aside{flex:0 0 300px;padding:20px}
h1{font-size:15px;margin:0 0 14px;font-weight:600}
dl{display:grid;grid-template-columns:auto 1fr;gap:6px 14px;margin:0}
dt{color:#9aa4ad}dd{margin:0;text-align:right;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
#bar{height:10px;background:#2a3037;border-radius:5px;margin:18px 0 6px;position:relative;overflow:hidden}
#fill{height:100%;width:0;background:#3cdc5a}#mark{position:absolute;top:0;bottom:0;width:2px;background:#fff}
#state{margin-top:18px;color:#ffbe28;min-height:1.4em}
</style></head><body>
<main><img id="frame" alt="newest frame with detections"></main>
<aside><h1>polypfed live</h1>
<div id="bar" role="img" aria-label="best confidence"><div id="fill"></div><div id="mark"></div></div>
<dl><dt>confidence</dt><dd id="confidence">-</dd><dt>detections</dt><dd id="detections">-</dd>
<dt>speed</dt><dd id="fps">-</dd><dt>frame</dt><dd id="number">-</dd>
<dt>model</dt><dd id="model">-</dd><dt>precision</dt><dd id="precision">-</dd></dl>
<p id="state" role="status"></p></aside>
<script>
const at = id => document.getElementById(id);
let last = -1;
async function look() {
  try {
    const s = await (await fetch("state", {cache: "no-store"})).json();
    for (const k of ["detections", "number", "model", "precision"]) at(k).textContent = s[k] ?? "-";
    at("confidence").textContent = s.confidence === null ? "-" : s.confidence.toFixed(2);
    at("fps").textContent = s.fps ? s.fps.toFixed(1) + " FPS" : "-";
    at("fill").style.width = 100 * (s.confidence ?? 0) + "%";
    at("fill").style.background = s.confidence >= s.threshold ? "#3cdc5a" : "#ffbe28";
    at("mark").style.left = 100 * s.threshold + "%";
    at("state").textContent = s.ended ? "The source has ended." : s.number === null ? "Waiting for frames." : "";
    if (s.number !== null && s.number !== last) {
      last = s.number;
      await new Promise(done => {
        at("frame").onload = at("frame").onerror = done;
        at("frame").src = "frame.jpg?" + last;
      });
    }
    setTimeout(look, s.ended ? 1000 : 30);
  } catch (error) {
    at("state").textContent = "Detection has stopped.";
    setTimeout(look, 1000);
  }
}
look();
</script></body></html>
"""


class LiveView(WebServer):
    """Serve the newest frame. Use it as a context manager.

    Args:
        port: 0 takes a free one; see `url`.
        model, precision: what the page says about the model. threshold: where the bar is marked.
        quality: of the JPEG, 1 to 100.

    Raises:
        ConfigError: the port is taken.
    """

    def __init__(
        self, port: int = 0, model: str = "", precision: str = "", threshold: float = 0.7, quality: int = 80
    ) -> None:
        self._cv2 = require("cv2", extra="edge")
        self._quality, self._lock = quality, threading.Lock()
        self._image: Pixels | None = None
        self._told: Pixels | None = None  # the frame that the last state told of: the page fetches it next
        self._state: dict[str, Any] = {"number": None, "confidence": None, "detections": None, "fps": None}
        self._state |= {"model": model, "precision": precision, "threshold": threshold, "ended": False}
        super().__init__(port=port, policy=_POLICY, where="--live")

    def show(self, image: Pixels, number: int, detections: int, confidence: float, fps: float) -> None:
        """Make `image`, (h, w, 3) uint8 RGB with its boxes drawn, the newest; it must not be changed afterwards.

        It is compressed only when a browser asks for it, so an unwatched view costs nothing.
        """
        seen = {"number": number, "detections": detections, "confidence": round(confidence, 4), "fps": round(fps, 2)}
        with self._lock:
            self._image = image
            self._state |= seen

    def update(self, **values: Any) -> None:
        """Change what the page says: `model`, `precision`, `threshold`, `ended`."""
        with self._lock:
            self._state |= values

    def state(self) -> Mapping[str, Any]:
        """What the page shows."""
        with self._lock:
            return dict(self._state)

    def jpeg(self) -> bytes | None:
        """The frame that the last answer to /state was about, or else the newest, compressed."""
        with self._lock:
            image, self._told = (self._image if self._told is None else self._told), None
        if image is None:
            return None
        settings = [self._cv2.IMWRITE_JPEG_QUALITY, self._quality]
        _, data = self._cv2.imencode(".jpg", image[..., ::-1], settings)
        return bytes(data)

    def answer(self, asked: Asked) -> Answer:
        """The page, what it says, and the newest frame."""
        if asked.path == "/":
            return Answer(PAGE.encode(), HTML)
        if asked.path == "/state":
            with self._lock:
                self._told, state = self._image, dict(self._state)
            return Answer(json.dumps(state).encode(), JSON)
        image = self.jpeg() if asked.path == "/frame.jpg" else None
        return Answer(b"nothing here", code=404) if image is None else Answer(image, "image/jpeg")
