"""Small federations with known answers, and sites that misbehave; at module level, where workers find them."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polypfed import Evaluation, Failure, Federation, History, ModelSpec, NumpyClient, Task, Update
from polypfed.backends import Local
from polypfed.core.messages import Reply
from polypfed.core.model import Vector
from polypfed.testing.carried import Through

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Quadratic:
    """The gradient of a/2 (x - b)^2."""

    a: float
    b: float
    pause: float = 0.0

    def __call__(self, x: Vector) -> Vector:
        if self.pause:
            time.sleep(self.pause)
        return np.float32(self.a) * (x - np.float32(self.b))

    def loss(self, x: Vector) -> float:
        return float(0.5 * self.a * np.sum((x.astype(np.float64) - self.b) ** 2))


A, B = (1.0, 4.0, 2.0, 0.5), (0.0, 1.0, -1.0, 2.0)
START = np.linspace(0.1, 1, 50).astype(np.float32)


def clients(count: int = 3, start: Vector = START) -> list[NumpyClient]:
    """Up to four sites, A[i]/2 (x - B[i])^2, of different steps and examples: for rounds whose values are rounded."""
    return [
        NumpyClient(f"s{i}", Quadratic(A[i], B[i]), start, lr=0.1, steps=3 + i, weight=50 + 10 * i)
        for i in range(count)
    ]


def sites(count: int = 4, size: int = 3, steps: int = 2, lr: float = 0.1, pause: float = 0.0) -> list[NumpyClient]:
    """Sites with different optima, curvatures, sizes; awkward numbers, so that the order of a sum shows in its bits."""
    return [
        NumpyClient(
            f"site-{i:02d}",
            gradient=Quadratic(1.0 + 0.37 * (i % 5), 0.731 * i - 1.1, pause),
            x0=np.linspace(-0.3, 0.9, size, dtype=np.float32),
            lr=lr,
            steps=steps + i % 3,
            weight=7 + 13 * i,
        )
        for i in range(count)
    ]


@dataclass
class Odd:
    """A site that does `act` in the rounds of `when` (all if empty) before it trains as `inner` would."""

    inner: NumpyClient
    act: Callable[["Odd", Task], Any]
    when: tuple[int, ...] = ()
    in_evaluate: bool = False

    @property
    def name(self) -> str:
        return self.inner.name

    def initial(self) -> tuple[ModelSpec, Vector]:
        return self.inner.initial()

    def fit(self, task: Task) -> Update:
        if not self.in_evaluate and (not self.when or task.round in self.when):
            result = self.act(self, task)
            if result is not None:
                return result
        return self.inner.fit(task)

    def evaluate(self, task: Task) -> Evaluation:
        if self.in_evaluate and (not self.when or task.round in self.when):
            result = self.act(self, task)
            if result is not None:
                return result
        return self.inner.evaluate(task)

    def state(self) -> bytes:
        return self.inner.state()

    def restore(self, state: bytes) -> None:
        self.inner.restore(state)


def exit_hard(site: Odd, task: Task) -> None:
    os._exit(9)


def exit_soft(site: Odd, task: Task) -> None:
    raise SystemExit(3)


def sleep_long(site: Odd, task: Task) -> None:
    time.sleep(60)


def out_of_memory(site: Odd, task: Task) -> None:
    raise MemoryError


def divide(site: Odd, task: Task) -> None:
    raise ZeroDivisionError("division\nby zero " + "x" * 2000)


def not_an_update(site: Odd, task: Task) -> Any:
    return {"delta": task.vectors["model"]}


def nan_metric(site: Odd, task: Task) -> Update:
    good = site.inner.fit(task)
    return Update(good.client, good.round, good.vectors, good.weight, {"loss": float("nan")})


def numpy_numbers(site: Odd, task: Task) -> Update:
    good = site.inner.fit(task)
    return Update(good.client, good.round, good.vectors, np.int64(good.weight), {"loss": np.float32(0.5)})  # type: ignore[arg-type]


def another_name(site: Odd, task: Task) -> Update:
    good = site.inner.fit(task)
    return Update("site-00", good.round, good.vectors, good.weight)


def writes_into_the_model(site: Odd, task: Task) -> None:
    task.vectors["model"][:] = 1e6


def unwritable(site: Odd, task: Task) -> Update:
    good = site.inner.fit(task)
    return Update(good.client, good.round, {"delta": np.array(["a", "b", "c"])}, good.weight)  # type: ignore[dict-item]


@dataclass
class Scripted(Through):
    """A backend whose sites are `inner`'s, with `script(name, task, honest)` deciding what arrives in its place."""

    script: Callable[[str, Task, Reply], Iterator[Reply]]
    inner: Local = field(default_factory=Local)
    shuffle: Callable[[list[str]], list[str]] = sorted

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        replies = {r.client: r for r in self.inner.exchange(tasks, deadline)}
        for name in self.shuffle(list(tasks)):
            if tasks[name].kind in ("fit", "step"):
                yield from self.script(name, tasks[name], replies[name])
            else:
                yield replies[name]


def honest(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
    yield reply


def absent(name: str, task: Task) -> Failure:
    return Failure(name, task.round, "lost", "", task.run)


def without(lost: Counter[tuple[str, int]], rounds: int, clients: Sequence[Any], **settings: Any) -> History:
    """The federation on this machine, in which a site does not answer so many attempts of a round."""
    left = Counter(lost)

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        left[name, task.round] -= 1
        yield absent(name, task) if left[name, task.round] >= 0 else reply

    return Federation(clients=clients, **settings).run(rounds, Scripted(script))


def bits(history: History) -> bytes:
    assert history.model is not None
    return history.model.tobytes()


def scores(history: History) -> list[tuple[int, str, str, float]]:
    """All rows but the times."""
    return [(r["round"], r["site"], r["metric"], r["value"]) for r in history.rows if r["metric"] != "round_s"]


def run(rounds: int = 3, *, clients: Sequence[Any] | None = None, workers: int = 1, **settings: Any) -> History:
    """A federation of `sites()` on this machine."""
    fed = Federation(clients=sites() if clients is None else clients, **settings)
    return fed.run(rounds, Local(workers))


@dataclass
class Recording(Scripted):
    """Notes every task."""

    tasks: list[tuple[str, Task]] = field(default_factory=list)

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        self.tasks += tasks.items()
        return super().exchange(tasks, deadline)


def start(size: int = 3) -> tuple[ModelSpec, Any]:
    arrays = {"x": np.zeros(size, np.float32)}
    spec = ModelSpec.of(arrays)
    return spec, spec.pack(arrays)
