"""The detector beside training, as real processes: it takes each round's model, and neither ends the other."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="install polypfed[edge]")

from polypfed.backends import Local
from polypfed.backends.device import DeviceProcess, beside, settings_of
from polypfed.backends.site_file import SiteFile
from polypfed.clients.on_device import digest_of
from polypfed.core.errors import ConfigError
from polypfed.data.store import SampleStore, Vault
from polypfed.federation import Federation
from tests.boards import table
from tests.live.loopback import alive, until
from tests.runtimes import need_device

need_device()

TEXT = """
name = "a"
client = "tests.boards:client"
[settings]
dies = 2
"""


def site(folder: Path, **more: object) -> SiteFile:
    path = folder / "site.toml"
    path.write_text(TEXT + table(folder, **more))
    return SiteFile.load(path)


def serves(device: DeviceProcess, start: str, beyond: int = 0, after: float = 0.0) -> dict:
    """The state, once one of a time later than `after` says that such a model serves and has seen so many frames."""

    def now() -> dict | None:
        state = device.status()
        right = state.get("model", "").startswith(start) and state["frames"] > beyond and state["at"] > after
        return state if right else None

    return until(now, 30)


@pytest.mark.slow
def test_training_crashes_and_the_detector_is_killed(tmp_path: Path) -> None:
    """Round 2 ends the training process: the detector goes on. The detector is killed: another one takes over."""
    board = site(tmp_path)
    with beside(board) as (device,):
        history = Federation(clients=[board.open()], retries=1).run(2, Local(workers=2), tmp_path / "run")
        assert (tmp_path / "died").exists()
        version = f"round-0002-{digest_of(history.model)[:8]}"
        state = serves(device, version)
        assert device.starts == 1
        assert (state["errors"], state["refused"]) == (0, 0)
        first = device.pid
        killed = time.time()
        os.kill(first, signal.SIGKILL)
        until(lambda: device.starts == 2 and device.pid not in (None, first), 30)
        assert serves(device, version, after=killed)["refused"] == 0  # its own word, not that of the first
        last = device.pid
    assert not alive(last)
    with SampleStore(tmp_path / "samples", Vault(tmp_path / "samples.key", create=False)) as store:
        assert version in {record.model for record in store.records()}  # sigmoid(0) is hard


@pytest.mark.slow
def test_it_does_not_outlive_its_parent_and_says_why_it_cannot_run(tmp_path: Path, capfd) -> None:
    board = site(tmp_path, template="none.zip")
    with beside(board) as (device,):
        until(lambda: device.starts == 2, 30)
        assert device.status() == {}
    assert "none.zip: cannot be read" in capfd.readouterr().err


def test_settings(tmp_path: Path) -> None:
    board = site(tmp_path)
    settings = settings_of(board.path)
    assert (settings.frames, settings.store) == (str(tmp_path / "frames"), tmp_path / "samples")
    assert settings.models == tmp_path / "state" / "device" / "models"
    assert SiteFile.load(board.path).board() == settings
    for line, message in (
        ("threshold = 2", "threshold: 2 is not above 0 and at most 1"),
        ("colour = 1", "colour: there is no such setting"),
        ("live = true", "live: True is of the wrong type"),
        ("every = 0", "every: 0 is not a whole number of at least 1"),
        ("nice = 20", "nice: 20 is not a whole number from 0 to 19"),
        ("pseudo = -0.5", "must not be negative"),
    ):
        name = line.partition(" ")[0]
        text = [x for x in table(tmp_path).splitlines() if not x.startswith(f"{name} ")]
        board.path.write_text("\n".join([TEXT, *text, line]))
        with pytest.raises(ConfigError, match=message) as caught:
            settings_of(board.path)
        assert str(board.path) in str(caught.value)
    board.path.write_text(TEXT)
    with pytest.raises(ConfigError, match=r"\[device\] is missing"):
        settings_of(board.path)
    assert SiteFile.load(board.path).board() is None


def test_models_are_handed_over_once(tmp_path: Path) -> None:
    from polypfed import Task

    (tmp_path / "died").touch()  # it will not again
    client = site(tmp_path).open()
    spec, x = client.initial()
    folder = client.settings.models
    client.fit(Task(1, "fit", {"model": x}, {}))
    assert [p.stem for p in folder.glob("*.safetensors")] == [f"round-0000-{digest_of(x)[:8]}"]
    client.evaluate(Task(1, "evaluate", {"model": x + 1}, {}))
    client.fit(Task(2, "fit", {"model": x + 1}, {}))  # the same again
    client.evaluate(Task(2, "evaluate", {"model": x + 2}, {"of": "candidate"}))  # measured, not to serve
    assert len(list(folder.glob("*.safetensors"))) == 2
    for number in range(2, 6):
        client.evaluate(Task(number, "evaluate", {"model": x + number}, {}))
    assert sorted(p.name[:10] for p in folder.glob("*.safetensors")) == ["round-0003", "round-0004", "round-0005"]
    assert spec.size == len(x)
    assert json.loads(json.dumps(client.name)) == "a"
