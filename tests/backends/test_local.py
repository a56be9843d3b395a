import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

from polypfed import Failure, Federation, NumpyClient, Task, Update, backends
from polypfed.backends import Backend, Host, Local
from polypfed.backends.local import _Worker
from polypfed.core.errors import ConfigError, QuorumError
from polypfed.core.messages import Reply
from polypfed.core.model import shared
from tests import problems
from tests.problems import ROOT, Odd, bits, exit_hard, scores, sites, sleep_long

PATIENT = 60.0


@pytest.fixture
def local(request: pytest.FixtureRequest) -> Iterator[Local]:
    backend = Local(getattr(request, "param", 2))
    yield backend
    backend.close()
    assert multiprocessing.active_children() == []


def ask(
    backend: Local, clients: Sequence[Any], deadline: float = PATIENT, folder: Path | None = None, **config: Any
) -> dict[str, Reply]:
    """One fit by every client."""
    backend.host(clients, folder)
    return again(backend, deadline, **config)


def again(backend: Local, deadline: float = PATIENT, number: int = 1, **config: Any) -> dict[str, Reply]:
    vectors = shared({"model": np.zeros(3, np.float32)})
    tasks = {n: Task(number, "fit", vectors, {"run": "r", **config}) for n in backend.clients}
    replies = list(backend.exchange(tasks, deadline))
    assert sorted(r.client for r in replies) == sorted(tasks)  # everyone is answered for, once
    assert {r.round for r in replies} == {number}
    return {r.client: r for r in replies}


def reasons(replies: dict[str, Reply]) -> dict[str, str]:
    return {n: r.reason if isinstance(r, Failure) else "" for n, r in sorted(replies.items())}


def test_it_is_a_backend_that_hosts() -> None:
    assert isinstance(Local(), Host)
    carrier: Backend = Local()
    assert list(carrier.clients) == []
    assert backends.__all__ == ["Backend", "Flower", "Host", "Local", "NVFlare"]


@pytest.mark.parametrize("workers", [0, -1, 1.0, True, "2", None])
def test_workers_is_a_whole_number_above_zero(workers: Any) -> None:
    with pytest.raises(ConfigError, match=r"^workers: "):
        Local(workers)


@pytest.mark.parametrize("local", [1, 2], indirect=True)
def test_names_are_sorted_whatever_the_order_of_the_clients(local: Local) -> None:
    local.host(sites(4)[::-1], None)
    assert list(local.clients) == ["site-00", "site-01", "site-02", "site-03"]
    local.close()
    assert list(local.clients) == []


def test_in_this_process_nothing_is_serialised() -> None:
    seen: list[Any] = []

    class Keeping(NumpyClient):
        def fit(self, task: Task) -> Update:
            seen.append(task.vectors["model"])
            return super().fit(task)

    model = np.zeros(1, np.float32)
    backend = Local()
    backend.host([Keeping("a", lambda x: x, [0.0])], None)
    list(backend.exchange({"a": Task(1, "fit", {"model": model})}, PATIENT))
    assert seen[0] is model


def test_in_this_process_later_clients_miss_a_passed_deadline() -> None:
    replies = ask(Local(), sites(3, pause=0.2), deadline=0.1)
    assert reasons(replies) == {"site-00": "", "site-01": "deadline", "site-02": "deadline"}


def test_workers_answer_as_this_process_does(local: Local) -> None:
    here, there = ask(Local(), sites(5)), ask(local, sites(5))
    for name, reply in here.items():
        other = there[name]
        assert isinstance(reply, Update)
        assert isinstance(other, Update)
        assert reply.vectors["delta"].tobytes() == other.vectors["delta"].tobytes()
        assert (reply.weight, dict(reply.metrics), reply.run) == (other.weight, dict(other.metrics), other.run)


def test_an_endless_deadline_is_no_error(local: Local) -> None:
    assert set(reasons(ask(local, sites(3), deadline=float("inf"))).values()) == {""}


def test_a_killed_process_costs_its_client_the_round_and_nobody_else(local: Local) -> None:
    clients = [Odd(c, exit_hard) if c.name == "site-01" else c for c in sites(4)]
    for _ in range(2):
        replies = ask(local, clients) if not local.clients else again(local)
        assert reasons(replies) == {"site-00": "", "site-01": "lost", "site-02": "", "site-03": ""}


def test_a_process_that_died_while_idle_is_replaced_without_a_loss(local: Local) -> None:
    ask(local, sites(3))
    for worker in local._pool:
        assert worker.process.pid is not None
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.join()
    assert set(reasons(again(local)).values()) == {""}


def test_a_task_that_cannot_be_sent_is_a_loss_and_never_a_hang(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    local.host(sites(2), None)
    monkeypatch.setattr(_Worker, "send", lambda self, name, task: False)
    begun = monotonic()
    assert set(reasons(again(local)).values()) == {"lost"}
    assert monotonic() - begun < PATIENT / 2


def test_a_reply_that_is_no_message_is_a_loss(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    local.host(sites(2), None)
    monkeypatch.setattr("polypfed.backends.local.decode", lambda data: Task(1, "fit", {}))
    assert set(reasons(again(local)).values()) == {"lost"}


def test_a_sleeping_client_is_cut_off_at_the_deadline(local: Local) -> None:
    clients = [Odd(c, sleep_long, when=(1,)) if c.name in ("site-01", "site-03") else c for c in sites(4)]
    local.host(clients, None)
    warm = {n: Task(0, "evaluate", {"model": np.zeros(3, np.float32)}) for n in local.clients}
    assert len(list(local.exchange(warm, PATIENT))) == 4  # the processes have started
    begun = monotonic()
    assert reasons(again(local, 1.5)) == {"site-00": "", "site-01": "deadline", "site-02": "", "site-03": "deadline"}
    assert 1.4 < monotonic() - begun < 10
    assert set(reasons(again(local, number=2)).values()) == {""}  # both processes were started anew
    assert monotonic() - begun < 40


def test_all_sleep_and_the_rest_of_the_queue_is_answered_for(local: Local) -> None:
    replies = ask(local, [Odd(c, sleep_long) for c in sites(5)], deadline=1.0)
    assert set(reasons(replies).values()) == {"deadline"}


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (problems.divide, "crashed"),
        (problems.out_of_memory, "memory"),
        (problems.exit_soft, "crashed"),
        (problems.not_an_update, "crashed"),
        (problems.nan_metric, "metrics"),
        (problems.another_name, "unknown-client"),
        (problems.writes_into_the_model, "crashed"),
        (problems.numpy_numbers, ""),
    ],
)
def test_misbehaviour_gives_the_same_words_here_and_in_workers(local: Local, act: Any, reason: str) -> None:
    clients = [Odd(c, act) if c.name == "site-01" else c for c in sites(2)]
    assert reasons(ask(Local(), clients))["site-01"] == reason
    assert reasons(ask(local, clients))["site-01"] == reason


def test_an_update_that_cannot_be_written_is_a_failure(local: Local) -> None:
    replies = ask(local, [Odd(c, problems.unwritable) if c.name == "site-01" else c for c in sites(2)])
    assert reasons(replies) == {"site-00": "", "site-01": "header"}


def test_clients_that_cannot_be_sent_are_refused_with_a_remedy(local: Local) -> None:
    local.host([NumpyClient("a", lambda x: x, [0.0])], None)
    with pytest.raises(
        ConfigError, match=r"^workers: the clients cannot be sent .* top of a module, or use one worker"
    ):
        again(local)


def test_the_pool_is_no_larger_than_the_federation() -> None:
    backend = Local(workers=4)
    try:
        ask(backend, sites(2))
        assert len(multiprocessing.active_children()) == 2
    finally:
        backend.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_gives_the_same_bits(workers: int) -> None:
    one, many = (problems.run(4, clients=sites(6), workers=w, per_round=4, evaluate="matrix") for w in (1, workers))
    assert bits(one) == bits(many)
    assert scores(one) == scores(many)


def test_a_lost_process_in_a_federation(tmp_path: Path) -> None:
    clients = [Odd(c, exit_hard, when=(2,)) if c.name == "site-01" else c for c in sites(4)]
    history = Federation(clients=clients, quorum=3).run(3, Local(2), tmp_path)
    assert [(f.client, f.round, f.reason) for f in history.failures] == [("site-01", 2, "lost")]
    assert history.values("accepted") == {1: 4, 2: 3, 3: 4}
    three = Federation(clients=clients, quorum=4, retries=1)
    with pytest.raises(QuorumError, match=r"round 2: 3 accepted updates, the quorum is 4"):
        three.run(3, Local(2), tmp_path / "strict")
    sound = Federation(clients=sites(4), quorum=4).resume(tmp_path / "strict", 3, Local(2))
    assert bits(sound) == bits(problems.run(3))
    assert [f.reason for f in sound.failures] == ["lost", "lost"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


ORPHANING = """
import sys
from polypfed.backends import Local
from tests.backends.test_local import again
from tests.problems import Odd, sites, sleep_long
import multiprocessing, threading
if __name__ == "__main__":
    backend = Local(2)
    backend.host([Odd(c, sleep_long) if c.name == "site-01" else c for c in sites(2)], None)
    def tell():
        import time
        while len(multiprocessing.active_children()) < 2: time.sleep(0.05)
        time.sleep(2)
        print(*[c.pid for c in multiprocessing.active_children()], flush=True)
    threading.Thread(target=tell, daemon=True).start()
    again(backend)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    """One worker is busy, one idle."""
    script = tmp_path / "orphaning.py"
    script.write_text(ORPHANING)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(alive(pid) for pid in workers)
        parent.kill()
    end = monotonic() + 20
    while any(alive(pid) for pid in workers) and monotonic() < end:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)
