import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

from polypfed import Task, Update
from polypfed.backends.resident import Resident, ask
from polypfed.backends.site_file import SiteFile
from tests.live.flower import study

TASK = Task(1, "fit", {"model": np.zeros(3, np.float32)}, {"run": "r"})
TEXT = """
name = "a"
client = "tests.live.flower.study:client"
[settings]
names = ["a"]
"""


def opened(folder: Path, more: str = "") -> tuple[SiteFile, Path]:
    (folder / "site.toml").write_text(TEXT + more)
    return SiteFile.load(folder / "site.toml"), folder / "s" / "w"


@pytest.fixture
def resident(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    site, place = opened(tmp_path, getattr(request, "param", ""))
    with Resident(site, place):
        yield place
    assert not place.exists()


def test_it_answers_as_the_client_itself_would(resident: Path) -> None:
    reply = ask(resident, "a", TASK, 30.0)
    assert isinstance(reply, Update)
    direct = study.client("a", resident.parent, ["a"]).fit(TASK)
    assert reply.vectors["delta"].tobytes() == direct.vectors["delta"].tobytes()
    assert reply.run == "r"
    assert stat.S_IMODE(resident.parent.stat().st_mode) == 0o700


def test_the_client_stays_between_messages(resident: Path) -> None:
    ask(resident, "a", TASK, 30.0)
    begun = monotonic()
    assert isinstance(ask(resident, "a", TASK, 30.0), Update)
    assert monotonic() - begun < 0.4  # a process that loads numpy takes longer


@pytest.mark.parametrize(
    ("resident", "deadline", "reason"),
    [('act = "die"\nwhen = 1', 30.0, "lost"), ('act = "hang"\nwhen = 1', 7.0, "deadline")],
    indirect=["resident"],
)
def test_a_worker_that_dies_or_hangs_is_answered_for_and_replaced(resident: Path, deadline: float, reason: str) -> None:
    begun = monotonic()
    assert getattr(ask(resident, "a", TASK, deadline), "reason", "") == reason
    assert monotonic() - begun < 20
    assert isinstance(ask(resident, "a", TASK, 30.0), Update)


@pytest.mark.parametrize("resident", ['act = "hang"\nwhen = 1'], indirect=True)
def test_work_that_nobody_waits_for_is_ended(resident: Path) -> None:
    """The relay is killed in mid-round; the next task finds a free worker."""
    from polypfed.backends.resident import _send
    from polypfed.core.messages import encode

    with socket.socket(socket.AF_UNIX) as relay:
        relay.connect(str(resident))
        _send(relay, encode(TASK), 600.0)
        while not (resident.parents[1] / "began").exists():
            time.sleep(0.05)
    begun = monotonic()
    assert isinstance(ask(resident, "a", TASK, 30.0), Update)
    assert monotonic() - begun < 15


def test_noise_on_the_socket_does_not_end_it(resident: Path) -> None:
    for noise in (b"", b"x" * 5, b"\xff" * 64, (3).to_bytes(8, "little") + bytes(8) + b"abc"):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(resident))
            stranger.sendall(noise)
    assert isinstance(ask(resident, "a", TASK, 30.0), Update)


def test_a_worker_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    reply: Any = ask(tmp_path / "none", "a", TASK, 1.0)
    assert (reply.client, reply.round, reply.reason, reply.run) == ("a", 1, "lost", "r")


def test_one_that_never_answers_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polypfed.backends.resident._GRACE", 0.2)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        reply: Any = ask(tmp_path / "s", "a", TASK, 0.1)
    assert reply.reason == "deadline"


def test_two_messages_at_once_take_turns(resident: Path) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(ask(resident, "a", TASK, 30.0))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(r) for r in found] == [Update] * 3
