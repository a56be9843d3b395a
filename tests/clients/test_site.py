import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import Evaluation, Failure, Task, Update
from polypfed.clients import Site
from polypfed.core.errors import DataError, MissingExtraError, PolypfedError, StateError
from polypfed.core.messages import Reply

X = np.zeros(2, np.float32)


@dataclass
class Counter:
    """Keeps how often it has trained, and reports it; misbehaves on demand."""

    name: str = "a"
    count: int = 0
    keeps: bool = True
    error: BaseException | None = None
    restored: list[bytes] = field(default_factory=list)

    def fit(self, task: Task) -> Update:
        self.count += 1
        if self.error:
            raise self.error
        return Update(self.name, task.round, {"delta": X}, 1, {"count": self.count})

    def evaluate(self, task: Task) -> Evaluation:
        if self.error:
            raise self.error
        return Evaluation(self.name, task.round, {"first": float(task.vectors["model"][0]), "count": self.count}, 4)

    def state(self) -> bytes:
        return str(self.count).encode() if self.keeps else b""

    def restore(self, state: bytes) -> None:
        self.restored.append(state)
        self.count = int(state or b"0")


def fit(site: Site, number: int, accepted: int) -> Reply:
    return site.perform(Task(number, "fit", {"model": X}, {"run": "r", "accepted": accepted}))


def count(reply: Reply) -> float:
    assert isinstance(reply, Update | Evaluation), reply
    return reply.metrics["count"]


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path if request.param == "disk" else None


def test_an_accepted_round_stays(folder: Path | None) -> None:
    site = Site(Counter(), folder)
    assert [count(fit(site, n, n - 1)) for n in (1, 2, 3)] == [1, 2, 3]
    assert site.client.restored == [b""]  # nothing was restored in between


def test_a_refused_round_is_taken_back(folder: Path | None) -> None:
    site = Site(Counter(), folder)
    assert count(fit(site, 1, 0)) == 1
    assert count(fit(site, 2, 0)) == 1  # round 1 did not count
    assert count(fit(site, 3, 2)) == 2
    assert count(fit(site, 4, 2)) == 2  # nor did round 3
    assert count(fit(site, 4, 2)) == 2  # nor the first attempt at round 4


def test_evaluation_sees_the_state_that_counted(folder: Path | None) -> None:
    site = Site(Counter(), folder)
    fit(site, 1, 0)

    def evaluate(accepted: int) -> float:
        return count(site.perform(Task(1, "evaluate", {"model": X}, {"accepted": accepted})))

    assert evaluate(1) == 1
    assert evaluate(0) == 0
    assert count(site.perform(Task(1, "evaluate", {"model": X}))) == 0  # says nothing of it: left as it is


@pytest.mark.parametrize("fresh", [True, False])
def test_state_survives_a_new_process(tmp_path: Path, fresh: bool) -> None:
    client = Counter()
    for number in range(1, 8):
        site = Site(Counter() if fresh else client, tmp_path)
        assert count(fit(site, number, number - 1)) == number
    site = Site(Counter(), tmp_path)  # the server's newest checkpoints are damaged: it went back to round 5
    assert count(fit(site, 6, 5)) == 6


def test_going_back_to_the_beginning_is_always_possible(tmp_path: Path) -> None:
    for number in range(1, 7):
        fit(Site(Counter(), tmp_path), number, number - 1)
    assert count(fit(Site(Counter(), tmp_path), 1, 0)) == 1


@pytest.mark.parametrize("accepted", [1, 9])
def test_a_state_of_another_round_is_not_used(tmp_path: Path, accepted: int) -> None:
    for number in range(2, 8):
        fit(Site(Counter(), tmp_path), number, number - 1 if number > 2 else 0)
    reply = fit(Site(Counter(), tmp_path), 10, accepted)
    assert isinstance(reply, Failure)
    assert (reply.reason, reply.client, reply.round, reply.run) == ("state", "a", 10, "r")
    assert f"counts round {accepted} as this site's last" in reply.detail


def test_a_state_that_is_gone_is_missed_only_by_who_keeps_one() -> None:
    reply = fit(Site(Counter()), 4, 3)
    assert isinstance(reply, Failure)
    assert reply.reason == "state"
    assert isinstance(fit(Site(Counter(keeps=False)), 4, 3), Update)


def test_a_damaged_state_is_a_failure(tmp_path: Path) -> None:
    fit(Site(Counter(), tmp_path), 1, 0)
    for path in (tmp_path / "state").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    reply = fit(Site(Counter(), tmp_path), 2, 1)
    assert isinstance(reply, Failure)
    assert (reply.reason, "damaged" in reply.detail) == ("state", True)


def test_a_fit_that_broke_off_leaves_no_half_changed_state(folder: Path | None) -> None:
    client = Counter()
    site = Site(client, folder)
    fit(site, 1, 0)
    client.error = ValueError("half way")  # count has gone up by then
    assert isinstance(fit(site, 2, 1), Failure)
    client.error = None
    assert count(fit(site, 3, 1)) == 2


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (DataError("is empty", where="images"), "data", "images: is empty"),
        (StateError("x"), "state", "x"),
        (MissingExtraError("no torch"), "extra", "no torch"),
        (PolypfedError("the loss is not finite"), "client", "the loss is not finite"),
        (MemoryError(), "memory", "MemoryError:"),
        (ValueError("two\nlines"), "crashed", "ValueError: two lines"),
        (RecursionError("deep"), "crashed", "RecursionError: deep"),
        (SystemExit(3), "crashed", "SystemExit: 3"),
        (OSError(28, "No space left"), "crashed", "OSError: [Errno 28] No space left"),
        (KeyError("k"), "crashed", "KeyError: 'k'"),
    ],
)
@pytest.mark.parametrize("kind", ["fit", "evaluate"])
def test_every_error_becomes_a_failure_with_the_right_word(
    error: BaseException, reason: str, detail: str, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        reply = Site(Counter(error=error)).perform(Task(2, kind, {"model": X}, {"run": "r"}))
    assert reply == Failure("a", 2, reason, detail, "r")
    assert f"a, round 2: {detail}" in caplog.text
    assert ("Traceback" in caplog.text) is (reason == "crashed")  # a bug shows where; a known error needs no trace


def test_ctrl_c_is_not_a_failure() -> None:
    with pytest.raises(KeyboardInterrupt):
        Site(Counter(error=KeyboardInterrupt())).perform(Task(1, "fit", {"model": X}))


def test_a_long_story_is_cut() -> None:
    reply = Site(Counter(error=ValueError("x" * 10_000))).perform(Task(1, "fit", {"model": X}))
    assert isinstance(reply, Failure)
    assert len(reply.detail) == 500


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (None, "crashed"),
        ({"delta": X}, "crashed"),
        (Evaluation("a", 1, {}, 1), "crashed"),
        (Update("b", 1, {"delta": X}, 1), "unknown-client"),
        (Update("a", 1, {"delta": X}, 1, {"loss": float("nan")}), "metrics"),
        (Update("a", 1, {"delta": X}, 1, None), "metrics"),  # type: ignore[arg-type]
        (Update("a", 1, {"delta": X}, 1, {"loss": True}), "metrics"),
    ],
)
def test_what_is_no_update_of_this_site_is_a_failure(result: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counter, "fit", lambda self, task: result)
    reply = fit(Site(Counter()), 1, 0)
    assert isinstance(reply, Failure)
    assert (reply.client, reply.reason) == ("a", reason)


def test_numpy_numbers_become_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Update("a", 1, {"delta": X}, np.int64(7), {"loss": np.float32(0.5), "n": np.int32(2)})  # type: ignore[arg-type,dict-item]
    monkeypatch.setattr(Counter, "fit", lambda self, task: update)
    reply = fit(Site(Counter()), 1, 0)
    assert isinstance(reply, Update)
    assert (type(reply.weight), reply.weight) == (int, 7)
    assert {k: (type(v), v) for k, v in reply.metrics.items()} == {"loss": (float, 0.5), "n": (int, 2)}


def test_every_model_of_a_matrix_is_scored() -> None:
    vectors = {name: np.array([v, 0], np.float32) for name, v in (("model", 1), ("model@b", 2), ("model@c", 3))}
    reply = Site(Counter()).perform(Task(2, "evaluate", vectors, {"run": "r", "accepted": 0}))
    assert isinstance(reply, Evaluation)
    assert {k: v for k, v in reply.metrics.items() if "first" in k} == {"first": 1, "first@b": 2, "first@c": 3}
    assert (reply.weight, reply.run, reply.round) == (4, "r", 2)


@pytest.mark.parametrize(
    "error",
    [
        DataError("is empty", where="/data/DOE-JANE.png"),
        DataError("is cut short", where="DOE JANE, line 3"),
        FileNotFoundError(2, "No such file or directory", "DOE JANE"),
        ValueError("cannot decode 'DOE JANE.jpg'"),
        RuntimeError("failed at sites/DOE-JANE/x and DOE-JANE.dcm"),
    ],
)
def test_an_error_names_no_file_to_the_server(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Counter, task: Task) -> Update:
        raise error

    monkeypatch.setattr(Counter, "fit", broken)
    reply = fit(Site(Counter()), 1, 0)
    assert isinstance(reply, Failure)
    assert "JANE" not in reply.detail
    assert reply.detail
