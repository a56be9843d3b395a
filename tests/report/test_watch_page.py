"""The live view in a real browser: it follows a run, survives its end and a reload, and is accessible."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import polypfed as pf
from polypfed.core.journal import Journal
from polypfed.federation import Event
from polypfed.report.watch import WatchServer
from tests.report.browser import Browser, chromium, installed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not installed(), reason="needs chromium and chromedriver: apt-get install chromium-driver"),
]
FOLLOWS = 2.0  # seconds that the view may be behind


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def axe() -> str:
    """The text of axe-core: from POLYPFED_AXE, or where npm has put it."""
    places = [Path(os.environ["POLYPFED_AXE"])] if "POLYPFED_AXE" in os.environ else []
    if npm := shutil.which("npm"):
        for options in ([], ["-g"]):
            root = subprocess.run([npm, "root", *options], capture_output=True, text=True, check=False).stdout.strip()
            places.append(Path(root) / "axe-core" / "axe.min.js")
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        pytest.skip("needs axe-core: npm install --no-save axe-core@4, or POLYPFED_AXE=path of axe.min.js")
    return found.read_text(encoding="utf-8")


class Slow(pf.NumpyClient):
    """Trains when told to; site b sends a hostile update in round 2."""

    go: threading.Semaphore

    def fit(self, task: pf.Task) -> pf.Update:
        assert self.go.acquire(timeout=30)
        update = super().fit(task)
        if self.name == "b" and task.round == 2:
            bad = {"delta": np.full_like(update.vectors["delta"], np.nan)}
            return pf.Update(self.name, task.round, bad, update.weight, update.metrics, update.run)
        return update


def test_follows_a_running_federation(browser: Browser, tmp_path: Path) -> None:
    run, go, told = tmp_path / "run", threading.Semaphore(0), threading.Event()
    run.mkdir()
    sites = []
    for name in "abc":
        site = Slow(name, lambda x: x - 1, [0.0, 0.0])
        site.go = go
        sites.append(site)
    fed = pf.Federation(clients=sites, quorum=2)

    def work() -> None:
        with Journal(run, 2) as journal:

            def listen(event: Event) -> None:
                journal(event)
                if event.kind == "round" and event.round == 1:
                    told.set()

            fed.run(2, pf.backends.Local(), run, listen)

    worker = threading.Thread(target=work)
    with WatchServer(run) as server:
        browser.open(server.url)
        assert "waiting" in browser.text("status")
        worker.start()
        assert told.wait(30)
        assert browser.until("status", "round 1 of 2, training", 30) < FOLLOWS
        assert "… training" in browser.text("sites")
        go.release()
        assert browser.until("sites", "✓ trained round 1", 30) < FOLLOWS
        go.release(2)
        assert browser.until("status", "round 2 of 2", 30) < FOLLOWS
        go.release(2)
        assert browser.until("refused", "non-finite", 30) < FOLLOWS
        assert "✗ update refused: non-finite" in browser.text("sites")
        go.release()
        worker.join()
        assert browser.until("status", "complete", 30) < FOLLOWS
        ended = [browser.text(part) for part in ("status", "refused")]
        browser.open(server.url)
        assert [browser.text(part) for part in ("status", "refused")] == ended
        url = server.url
    assert browser.until("link", "Trying again", 10) < 5
    with WatchServer(run, port=int(url.rstrip("/").rpartition(":")[2])):
        browser.run("window.stayed = true")
        browser.wait(
            "const done = arguments[0]; (function look() {"
            "document.getElementById('link').textContent ? setTimeout(look, 50) : done() })()"
        )
        assert browser.run("return window.stayed")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_finding_of_axe(
    browser: Browser, make_run: Callable[..., Path], scheme: str, tmp_path: Path
) -> None:
    source = axe()
    with WatchServer(make_run()) as server:
        browser.scheme(scheme)
        browser.open(server.url)
        browser.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
        browser.run(source + "; window.axe = axe")
        found = browser.wait("const done = arguments[0]; axe.run().then(done)")
        picture = os.environ.get("POLYPFED_SCREENSHOTS", str(tmp_path))
        browser.run("document.querySelectorAll('details').forEach(d => { d.open = false })")
        browser.picture(Path(picture) / f"watch-{scheme}.png")
    assert len(found["passes"]) > 15  # it did look
    assert {v["id"]: [n["html"] for n in v["nodes"]] for v in found["violations"]} == {}


def test_the_keyboard_reaches_tables_and_numbers_and_keeps_its_place(
    browser: Browser, make_run: Callable[..., Path]
) -> None:
    run = make_run()
    with WatchServer(run) as server:
        browser.open(server.url)
        browser.press("\ue004")  # Tab
        assert browser.run("return document.activeElement.getAttribute('aria-label')") == "Table of sites"
        browser.press("\ue004")
        assert browser.run("return document.activeElement.innerText") == "The numbers: mAP50"
        browser.press("\ue007")  # Enter
        with open(run / "history.jsonl", "a", encoding="utf-8") as file:
            file.write('{"round": 7, "site": "", "metric": "map50", "value": 0.9}\n')
        browser.until("charts", "0.900", 5)
        assert browser.run("return document.activeElement.innerText") == "The numbers: mAP50"
        assert browser.run("return document.activeElement.parentElement.open")
