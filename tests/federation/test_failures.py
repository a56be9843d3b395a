"""What goes wrong in a run: sites that fail, too few of them, interruptions, full disks."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import Failure, Federation, NumpyClient, Task, Update
from polypfed.backends import Local
from polypfed.core import checkpoint as checkpoints
from polypfed.core.errors import CheckpointError, ConfigError, QuorumError
from polypfed.core.messages import Reply
from polypfed.core.rundir import RunDirectory
from polypfed.federation import Event
from polypfed.strategies import FedAvg
from tests.problems import Quadratic, Recording, Scripted, absent, bits, run, scores, sites, start

# ------------------------------------------------------------------------------------------- failures and quorum


def failing(rounds: tuple[int, ...], names: tuple[str, ...], attempts: int = 10**6) -> Scripted:
    """These sites do not answer in these rounds, for so many attempts."""
    seen: dict[tuple[int, str], int] = {}

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        tries = seen[task.round, name] = seen.get((task.round, name), 0) + 1
        yield absent(name, task) if task.round in rounds and name in names and tries <= attempts else reply

    return Scripted(script)


def test_failures_are_recorded_and_counted(tmp_path: Path) -> None:
    history = Federation(clients=sites()).run(3, failing((2,), ("site-01", "site-03")), tmp_path)
    assert [(f.client, f.round, f.reason) for f in history.failures] == [("site-01", 2, "lost"), ("site-03", 2, "lost")]
    assert history.values("failed") == {1: 0, 2: 2, 3: 0}
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    about = json.loads((tmp_path / "run.json").read_text())
    assert lines[0] == {"client": "site-01", "round": 2, "reason": "lost", "detail": "", "run": about["run"]}


def test_the_words_of_a_stranger_are_cut_to_one_line() -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield Failure(name, 99, "bad\nreason" + "!" * 100, "x\n" * 5000, "forged") if name == "site-01" else reply

    failure = Federation(clients=sites()).run(1, Scripted(script)).failures[0]
    assert failure.round == 1
    assert failure.run != "forged"
    assert "\n" not in failure.reason + failure.detail
    assert (len(failure.reason), len(failure.detail)) == (40, 500)


def test_below_the_quorum_a_round_is_tried_again() -> None:
    events: list[Event] = []
    fed = Federation(clients=sites(), quorum=3, retries=2)
    history = fed.run(3, failing((2,), ("site-01", "site-03"), attempts=2), listen=events.append)
    assert bits(history) == bits(run(3))  # an abandoned attempt leaves no trace in the model
    assert [e.round for e in events if e.kind == "abandoned"] == [2, 2]
    assert len(history.failures) == 4
    assert history.values("accepted") == {1: 4, 2: 4, 3: 4}


def test_a_retry_asks_other_sites() -> None:
    backend = Recording(failing((1,), tuple(s.name for s in sites(10))).script)
    with pytest.raises(QuorumError):
        Federation(clients=sites(10), per_round=3, retries=3).run(1, backend)
    fits = [n for n, t in backend.tasks if t.kind == "fit"]
    assert len({tuple(fits[i : i + 3]) for i in range(0, 12, 3)}) > 2


def test_with_retries_spent_the_run_ends_and_can_be_resumed(tmp_path: Path) -> None:
    fed = Federation(clients=sites(), quorum=3, retries=1)
    with pytest.raises(QuorumError, match=r"^round 2: 2 accepted updates, the quorum is 3\. See failures\.jsonl"):
        fed.run(4, failing((2,), ("site-01", "site-03")), tmp_path)
    lines = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["client"] for line in lines] == ["site-01", "site-03"] * 2
    assert checkpoints.load(tmp_path / "checkpoint").round == 1
    history = fed.resume(tmp_path, 4, Local())
    assert bits(history) == bits(run(4))
    assert len(history.failures) == 4


def test_a_quorum_exactly_met_is_met() -> None:
    assert run(1, quorum=4).values("accepted") == {1: 4}
    history = Federation(clients=sites(), quorum=2).run(1, failing((1,), ("site-01", "site-03")))
    assert history.values("accepted") == {1: 2}


# ---------------------------------------------------------------------------------------------------- run folder


@pytest.mark.parametrize("first", [0, 1, 3])
def test_resuming_gives_the_bits_and_rows_of_a_straight_run(tmp_path: Path, first: int) -> None:
    settings: dict[str, Any] = {"per_round": 3, "evaluate": "matrix", "keep_best": "-gradient_norm", "seed": 4}
    straight = Federation(clients=sites(), **settings).run(5, Local(), tmp_path / "a")
    Federation(clients=sites(), **settings).run(first, Local(), tmp_path / "b")
    resumed = Federation(clients=sites(), **settings).resume(tmp_path / "b", 5, Local())
    assert bits(resumed) == bits(straight)
    assert scores(resumed) == scores(straight)
    assert (resumed.best_round, resumed.best is not None) == (straight.best_round, True)
    for name in ("model.safetensors", "best.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len((tmp_path / "b" / "history.jsonl").read_text().splitlines()) == len(straight.rows)


def test_a_resume_to_fewer_rounds_changes_nothing(tmp_path: Path) -> None:
    straight = Federation(clients=sites()).run(3, Local(), tmp_path)
    assert bits(Federation(clients=sites()).resume(tmp_path, 2, Local())) == bits(straight)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 1}, "seed was 0 when the run began and is 1 now"),
        ({"strategy": FedAvg(eta=0.5)}, "strategy was"),
        ({"per_round": 2}, "per_round was None"),
        ({"keep_best": "-loss"}, "keep_best was"),
        ({"clients": sites(3)}, "sites was"),
        ({"clients": sites(4, size=5)}, "layout was"),
        ({"initial": start(5)}, "layout was"),
    ],
)
def test_a_resume_with_other_settings_is_refused(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    Federation(clients=sites()).run(1, Local(), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match=field):
        Federation(**({"clients": sites()} | change)).resume(tmp_path, 2, Local())
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_what_may_change_in_a_resume(tmp_path: Path) -> None:
    Federation(clients=sites()).run(1, Local(), tmp_path)
    other = Federation(clients=sites(), quorum=2, deadline=9, retries=3, evaluate="off", max_norm=1e4)
    assert bits(other.resume(tmp_path, 3, Local())) == bits(run(3))


def test_nothing_to_resume_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run"):
        Federation(clients=sites()).resume(tmp_path / "none", 2, Local())
    assert not (tmp_path / "none").exists()


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as folder:
        folder.begin({"run": "early"})
    assert bits(Federation(clients=sites()).resume(tmp_path, 2, Local())) == bits(run(2))


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    Federation(clients=sites()).run(1, Local(), tmp_path)
    with pytest.raises(ConfigError, match="holds a run already"):
        Federation(clients=sites()).run(1, Local(), tmp_path)


def test_a_folder_in_use_is_refused_and_free_again_afterwards(tmp_path: Path) -> None:
    fed = Federation(clients=sites())

    def meddle(event: Event) -> None:
        if event.kind == "round":
            with pytest.raises(ConfigError, match="another process is working"):
                fed.resume(tmp_path, 2, Local())

    fed.run(1, Local(), tmp_path, meddle)
    assert fed.resume(tmp_path, 2, Local())


def test_the_backend_is_let_go_whatever_happens(tmp_path: Path) -> None:
    backend = Local()

    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Federation(clients=sites()).run(1, backend, tmp_path, stop)
    assert list(backend.clients) == []
    assert Federation(clients=sites()).resume(tmp_path, 1, backend)


def test_a_full_disk_ends_the_run_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = Federation(clients=sites())
    fed.run(1, Local(), tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            fed.resume(tmp_path, 3, Local())
    assert bits(fed.resume(tmp_path, 3, Local())) == bits(run(3))


def test_memory_does_not_hold_the_updates_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streaming: when an update is handed over, no earlier one is alive any more."""
    import gc
    import weakref

    alive: list[Callable[[], Any]] = []
    counts: list[int] = []

    class Watched(NumpyClient):
        def fit(self, task: Task) -> Update:
            gc.collect()
            counts.append(sum(ref() is not None for ref in alive))
            update = super().fit(task)
            vectors = {"delta": update.vectors["delta"]}
            alive.append(weakref.ref(vectors["delta"]))
            return replace(update, vectors=vectors)

    clients = [Watched(f"s{i:02d}", Quadratic(1, i), np.zeros(10)) for i in range(20)]
    Federation(clients=clients, evaluate="off").run(1, Local())
    assert max(counts) <= 1
