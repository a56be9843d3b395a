"""The processes in which clients train, and the exchange over a stand-in for NVFlare's task queue."""

import multiprocessing
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nvflare.apis.fl_constant import ReturnCode
    from nvflare.apis.shareable import make_reply

from polypfed import Failure, Task, Update
from polypfed.backends.nvflare.exchange import ExchangeController
from polypfed.backends.nvflare.payload import reply_to_shareable, task_from_shareable
from polypfed.backends.nvflare.pool import Pool
from polypfed.core.errors import BackendError, ConfigError
from tests.problems import Odd, exit_hard, sites, sleep_long

PATIENT = 60.0


def task(number: int = 1) -> Task:
    return Task(number, "fit", {"model": np.zeros(3, np.float32)}, {"run": "f00", "reply_bytes": 10_000_000})


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert multiprocessing.active_children() == []


def perform(pool: Pool, name: str, number: int = 1, seconds: float = PATIENT, **more: Any) -> str:
    reply = pool.perform(name, task(number), monotonic() + seconds, **more)
    assert (reply.client, reply.round, reply.run) == (name, number, "f00")
    return getattr(reply, "reason", "")


def test_a_crash_a_hang_and_an_abort_are_failures_and_the_next_task_finds_a_process(folder: Path) -> None:
    first, second, third = sites(3)
    acts = [Odd(first, exit_hard, when=(1,)), Odd(second, sleep_long, when=(1,)), Odd(third, sleep_long, when=(1,))]
    pool = Pool(acts, folder, 2)
    try:
        assert perform(pool, "site-00", 0) == ""
        assert perform(pool, "site-00") == "lost"
        assert perform(pool, "site-01", seconds=3.0) == "deadline"
        begun = monotonic()
        assert perform(pool, "site-02", aborted=lambda: monotonic() > begun + 1) == "aborted"
        assert [perform(pool, name, 2) for name in ("site-00", "site-01", "site-02")] == ["", "", ""]
    finally:
        pool.close()


def test_a_client_that_waits_for_a_busy_process_is_late_and_not_stuck(folder: Path) -> None:
    pool = Pool([Odd(sites(1)[0], sleep_long), *sites(3)[2:]], folder, 1)
    thread = threading.Thread(target=perform, args=(pool, "site-00"), kwargs={"seconds": 4.0})
    try:
        pool.warm()
        thread.start()
        time.sleep(0.3)
        assert perform(pool, "site-02", seconds=0.5) == "deadline"
        thread.join()
        assert perform(pool, "site-02") == ""
    finally:
        pool.close()
        thread.join()


def test_clients_that_cannot_be_sent_are_refused_at_first_and_fail_later(folder: Path) -> None:
    clients = sites(2)
    clients[1].loss = threading.Lock()  # type: ignore[assignment]
    pool = Pool(clients, folder, 1)
    try:
        assert perform(pool, "site-00") == ""
        assert perform(pool, "site-01") == "client"
    finally:
        pool.close()
    with pytest.raises(ConfigError, match="cannot be sent"):
        Pool(clients, folder, 2).warm()
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


def test_a_closed_pool_answers_that_the_site_is_lost(folder: Path) -> None:
    pool = Pool(sites(1), folder, 1)
    pool.close()
    assert perform(pool, "site-00") == "lost"


class Queue(ExchangeController):
    """NVFlare's queue: `act(site)` says what comes back for each task, and None that nothing does."""

    def __init__(self, act: Any, **more: Any) -> None:
        super().__init__(**more)
        self.act, self.cancelled = act, 0

    def control_flow(self, abort_signal: Any, fl_ctx: Any) -> None:
        raise NotImplementedError

    def send(self, posted: Any, fl_ctx: Any, targets: Any = None, **_: Any) -> None:
        (site,) = targets
        answer = self.act(site, task_from_shareable(posted.data).task)
        if answer is not None:
            client = SimpleNamespace(client=SimpleNamespace(name=site), result=answer)
            posted.after_task_sent_cb(client, fl_ctx)
            posted.result_received_cb(client, fl_ctx)

    def cancel_task(self, posted: Any, *_: Any, **__: Any) -> None:
        self.cancelled += 1


def honest(site: str, asked: Task) -> Any:
    return reply_to_shareable(Update(site, asked.round, {"delta": np.ones(3, np.float32)}, 1, {}, asked.run), [])


def exchanged(queue: Queue, deadline: float = 0.5, triggered: bool = False) -> dict[str, Any]:
    tasks = {name: task() for name in ("a", "b", "c")}
    abort = SimpleNamespace(triggered=triggered)
    replies = list(queue.exchange(tasks, deadline, [], None, abort))
    assert sorted(r.client for r in replies) == ["a", "b", "c"]
    return {r.client: r for r in replies}


def test_everyone_is_answered_for_by_the_deadline() -> None:
    begun = monotonic()
    queue = Queue(lambda site, asked: None if site == "b" else honest(site, asked))
    found = exchanged(queue)
    assert 0.4 < monotonic() - begun < 3
    assert isinstance(found["a"], Update)
    assert isinstance(found["b"], Failure)
    assert found["b"].reason == "deadline"
    assert queue.cancelled == 3
    assert queue._work == set()


def test_what_a_site_sends_cannot_stop_the_others() -> None:
    answers = {"a": lambda asked: "garbage", "b": lambda asked: make_reply(ReturnCode.EXECUTION_EXCEPTION)}
    found = exchanged(Queue(lambda site, asked: answers[site](asked) if site in answers else honest(site, asked)))
    assert [getattr(found[n], "reason", "") for n in "abc"] == ["engine", "crashed", ""]


def test_a_site_without_a_sign_of_life_is_given_up_before_the_deadline() -> None:
    queue = Queue(lambda site, asked: honest(site, asked) if site == "a" else None, patience=0.6)
    context = SimpleNamespace(get_peer_context=lambda: SimpleNamespace(get_identity_name=lambda: "c"))
    done = threading.Event()

    def beat() -> None:
        while not done.wait(0.1):
            queue._hold("", {"hold": 0.0}, context)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        found = exchanged(queue, deadline=2.0)
    finally:
        done.set()
        thread.join()
    assert [getattr(found[n], "reason", "") for n in "abc"] == ["", "lost", "deadline"]


def test_an_aborted_job_ends_the_exchange_at_once() -> None:
    with pytest.raises(BackendError, match="Submit it again to resume it"):
        exchanged(Queue(lambda site, asked: None), deadline=30.0, triggered=True)


def test_a_site_that_asks_is_answered_when_there_is_work_for_it() -> None:
    queue = Queue(lambda site, asked: None)
    context = SimpleNamespace(get_peer_context=lambda: SimpleNamespace(get_identity_name=lambda: "b"))

    def asks(hold: float) -> float:
        begun = monotonic()
        queue._hold("", {"hold": hold}, context)
        return monotonic() - begun

    assert 0.2 < asks(0.3) < 2
    timer = threading.Timer(0.3, queue._send, ("b", task(), 9.0, [], None, None))
    timer.start()
    assert 0.2 < asks(20.0) < 10
    timer.join()
    queue.stop_controller(None)  # type: ignore[arg-type]
    queue._take("b")
    assert asks(20.0) < 1
