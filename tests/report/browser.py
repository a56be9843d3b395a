"""A headless Chromium, driven over the WebDriver protocol; no package needed."""

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1200,1600"
)


def installed() -> bool:
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Browser:
    def __init__(self, base: str, session: str) -> None:
        self._at = f"{base}/session/{session}"

    def open(self, url: str) -> None:
        _post(f"{self._at}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        return _post(f"{self._at}/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str) -> Any:
        """The value that the script hands to its last argument."""
        return _post(f"{self._at}/execute/async", {"script": script, "args": []})

    def text(self, id: str) -> str:
        return str(self.run("return document.getElementById(arguments[0]).innerText", id))

    def until(self, id: str, words: str, seconds: float) -> float:
        """Seconds until the words stand in the element; fails after `seconds`."""
        start = time.monotonic()
        while words not in (now := self.text(id)):
            assert time.monotonic() - start < seconds, f"{words!r} not in {now!r} after {seconds} s"
            time.sleep(0.05)
        return time.monotonic() - start

    def scheme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        _post(f"{self._at}/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}})

    def picture(self, path: Path) -> None:
        params = {"cmd": "Page.captureScreenshot", "params": {"captureBeyondViewport": True}}
        path.write_bytes(base64.b64decode(_post(f"{self._at}/goog/cdp/execute", params)["data"]))

    def press(self, key: str) -> None:
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        _post(f"{self._at}/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        base = f"http://127.0.0.1:{_port(driver)}"
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS.split(), f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        session = _post(f"{base}/session", wanted)["sessionId"]
        try:
            yield Browser(base, session)
        finally:
            _send(urllib.request.Request(f"{base}/session/{session}", method="DELETE"))
    finally:
        driver.terminate()
        driver.wait(10)
        assert driver.stdout is not None
        driver.stdout.close()


def _port(driver: "subprocess.Popen[str]") -> int:
    assert driver.stdout is not None
    for line in driver.stdout:
        if "started successfully on port" in line:
            return int(line.rstrip(". \n").rsplit(" ", 1)[1])
    raise AssertionError("chromedriver did not start")


def _post(url: str, value: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    return _send(urllib.request.Request(url, json.dumps(value).encode(), headers, method="POST"))


def _send(request: urllib.request.Request) -> Any:
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()[:500]) from None
