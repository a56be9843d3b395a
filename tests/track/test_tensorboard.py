"""TensorBoard's event files, read by its own reader and by its own server."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import urlencode

import numpy as np
import pytest

from polypfed.core.errors import ConfigError
from polypfed.core.history import History
from polypfed.track import TensorBoard, Tracking
from polypfed.track.tensorboard import ALL
from tests.live.loopback import free_ports

pytest.importorskip("tensorboard", reason="needs the extra tensorboard")


def tracking(folder: Path) -> Tracking:
    """Event files are read in the order of their names, which begin with the second; no resume is quicker."""
    sleep(1.0)
    return Tracking(TensorBoard(folder, "study"))


def wanted(history: History) -> dict[tuple[str, str], dict[int, float]]:
    """The history at TensorBoard's precision, by run and tag."""
    keys = {(r["site"], r["metric"]) for r in history.rows}
    return {(s or ALL, m): {k: float(np.float32(v)) for k, v in history.values(m, s).items()} for s, m in keys}


def test_its_reader_finds_the_history(run: Callable[..., History], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = run(lambda: tracking(tmp_path / "tb"))
    found = {}
    for folder in sorted((tmp_path / "tb" / "study").iterdir()):
        read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        read.Reload()
        for tag in read.Tags()["scalars"]:
            assert len({e.step for e in read.Scalars(tag)}) == len(read.Scalars(tag))  # nothing twice after the resume
            found[folder.name, tag] = {e.step: e.value for e in read.Scalars(tag)}
    assert found == wanted(history)
    assert {folder for folder, _ in found} == {"north", "south", ALL}


@pytest.mark.slow
def test_its_server_shows_the_history(run: Callable[..., History], tmp_path: Path) -> None:
    history, (port,) = run(lambda: tracking(tmp_path / "tb")), free_ports(1)
    command = [sys.executable, "-c", "import sys; from tensorboard.main import run_main; sys.exit(run_main())"]
    command += ["--logdir", str(tmp_path / "tb"), "--port", str(port), "--host", "127.0.0.1", "--reload_interval", "1"]
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"PATH": binaries})
    try:
        want = wanted(history)
        tags = until(lambda: ask(port, "tags"), lambda found: sum(map(len, found.values())) == len(want))
        assert {(name.removeprefix("study/"), tag) for name, tags_ in tags.items() for tag in tags_} == set(want)
        for (name, tag), values in want.items():
            points = until(
                partial(ask, port, "scalars", tag=tag, run=f"study/{name}"),
                lambda found, values=values: len(found) == len(values),
            )
            assert {step: value for _, step, value in points} == values, (name, tag)
    finally:
        server.terminate()
        server.wait(20)


def ask(port: int, what: str, **query: str):  # type: ignore[no-untyped-def]
    url = f"http://127.0.0.1:{port}/data/plugin/scalars/{what}?{urlencode(query)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def until(get, good, seconds: float = 90.0):  # type: ignore[no-untyped-def]
    end = monotonic() + seconds
    while True:
        try:
            if good(found := get()):
                return found
        except OSError:
            pass
        assert monotonic() < end
        sleep(0.3)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        TensorBoard(tmp_path / "file" / "tb").open()
