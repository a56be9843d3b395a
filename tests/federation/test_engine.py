import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import Evaluation, Federation, ModelSpec, NumpyClient, Task, Update
from polypfed.backends import Local
from polypfed.core import checkpoint as checkpoints
from polypfed.core.errors import LayoutError
from polypfed.core.messages import Reply
from polypfed.core.rundir import load_model
from polypfed.strategies import FedAvg, Registry
from tests import problems
from tests.problems import Odd, Quadratic, Recording, Scripted, absent, bits, honest, run, scores, sites, start

# --------------------------------------------------------------------------------------------------------- rounds


def test_round_zero_scores_the_initial_model_only() -> None:
    history = run(0)
    assert history.model is not None
    assert history.model.tolist() == pytest.approx([-0.3, 0.3, 0.9])
    assert {r["round"] for r in history.rows} == {0}
    assert set(history.values("gradient_norm", "")) == {0}


def test_rounds_count_from_one_and_leave_rows() -> None:
    history = run(2)
    assert sorted(history.values("accepted")) == [1, 2]
    rows = {(r["site"], r["metric"]): r["value"] for r in history.rows if r["round"] == 2}
    assert rows["", "accepted"] == 4
    assert rows["", "failed"] == 0
    assert rows["", "bytes_down"] == rows["", "bytes_up"] == 4 * 3 * 4
    assert rows["", "round_s"] > 0
    assert (rows["site-01", "weight"], rows["site-01", "images"]) == (20, 20)
    assert ("site-03", "gradient_norm") in rows


def test_the_first_round_by_a_second_implementation() -> None:
    history = run(1)
    x = np.linspace(-0.3, 0.9, 3, dtype=np.float32)
    total, weights = np.zeros(3), 0
    for site in sites():
        y = x
        for _ in range(site.steps):
            y = y - np.float32(site.lr) * np.asarray(site.gradient(y))
        total += site.weight * (y - x).astype(np.float64)
        weights += site.weight
    assert history.model is not None
    assert history.model.tobytes() == (x + (total / weights).astype(np.float32)).tobytes()


def test_the_users_model_and_the_kept_ones_are_not_shared() -> None:
    spec, x = start()
    history = Federation(clients=sites(), initial=(spec, x), keep_best="-gradient_norm").run(2, Local())
    assert not x.any()
    assert x.flags.writeable
    assert history.model is not None
    assert history.best is not None
    history.model[:] = 7  # it is the user's
    assert history.best.max() < 7


def test_a_client_cannot_write_into_the_global_model() -> None:
    for workers in (1, 2):
        clients = [Odd(c, problems.writes_into_the_model) if c.name == "site-01" else c for c in sites()]
        history = run(2, clients=clients, workers=workers)
        assert {(f.client, f.reason) for f in history.failures} == {("site-01", "crashed")}
        assert bits(history) == without("site-01", 2)


def without(name: str, rounds: int, **settings: Any) -> bytes:
    """The model when `name` was asked and did not answer."""

    def script(who: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield absent(who, task) if who == name else reply

    return bits(Federation(clients=sites(), **settings).run(rounds, Scripted(script)))


def test_the_same_seed_gives_the_same_bits_and_rows_twice() -> None:
    first, second = run(4, per_round=2, seed=5), run(4, per_round=2, seed=5)
    assert bits(first) == bits(second)
    assert scores(first) == scores(second)
    assert bits(run(4, per_round=2, seed=6)) != bits(first)


@pytest.mark.parametrize("count", [5, 40])
def test_the_order_of_arrival_changes_no_bit(count: int) -> None:
    straight = bits(run(3, clients=sites(count)))
    for seed in range(3):
        shuffler = random.Random(seed)
        backend = Scripted(honest, shuffle=lambda names, s=shuffler: s.sample(names, len(names)))  # type: ignore[misc]
        assert bits(Federation(clients=sites(count)).run(3, backend)) == straight
    assert bits(Federation(clients=sites(count)[::-1]).run(3, Local())) == straight


def test_tasks_carry_seed_strategy_run_and_what_counted() -> None:
    backend = Recording(honest)
    Federation(clients=sites(2), strategy=FedAvg(eta=0.5), seed=3).run(2, backend)
    fits = {(n, t.round): t for n, t in backend.tasks if t.kind == "fit"}
    seeds = {t.seed for t in fits.values()}
    assert len(seeds) == 4
    assert {t.config["accepted"] for (_, r), t in fits.items() if r == 2} == {1}
    assert {t.config["accepted"] for (_, r), t in fits.items() if r == 1} == {0}
    assert all(t.config["strategy"]["eta"] == 0.5 for t in fits.values())
    assert len({t.run for t in fits.values()}) == 1
    assert all(len(json.dumps(dict(t.config))) > 0 for t in fits.values())
    assert [t.round for _, t in backend.tasks if t.kind == "evaluate"] == [0, 0, 1, 1, 2, 2]


def test_per_round_draws_that_many_sites_anew_and_by_seed() -> None:
    def asked(seed: int) -> list[tuple[str, ...]]:
        backend = Recording(honest)
        Federation(clients=sites(10), per_round=3, seed=seed, evaluate="off").run(30, backend)
        rounds: dict[int, list[str]] = {}
        for name, task in backend.tasks:
            rounds.setdefault(task.round, []).append(name)
        return [tuple(rounds[r]) for r in sorted(rounds)]

    cohorts = asked(1)
    assert all(len(set(c)) == 3 for c in cohorts)
    assert len(set(cohorts)) > 15
    counts = [sum(f"site-{i:02d}" in c for c in cohorts) for i in range(10)]
    assert min(counts) >= 3
    assert max(counts) <= 18
    assert asked(1) == cohorts != asked(2)


def test_sampling_does_not_depend_on_the_order_of_the_clients() -> None:
    assert bits(run(5, clients=sites(6), per_round=2)) == bits(run(5, clients=sites(6)[::-1], per_round=2))


def test_events_tell_the_story() -> None:
    told: list[tuple[str, int, str]] = []
    Federation(clients=sites(2)).run(1, Local(), listen=lambda e: told.append((e.kind, e.round, e.site)))
    both = ["site-00", "site-01"]
    assert told == [
        *[("evaluate", 0, n) for n in both],
        ("saved", 0, ""),
        ("round", 1, ""),
        *[("fit", 1, n) for n in both],
        *[("evaluate", 1, n) for n in both],
        ("saved", 1, ""),
    ]


# ------------------------------------------------------------------------------------------------------- weights


def weighing(*weights: int) -> list[NumpyClient]:
    return [NumpyClient(f"s{i}", Quadratic(1, i), [5.0], lr=0.5, weight=w) for i, w in enumerate(weights)]


def test_zero_examples_count_for_the_quorum_but_move_nothing() -> None:
    full = Federation(clients=weighing(3, 0, 4), quorum=3).run(2, Local())

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield absent(name, task) if name == "s1" else reply

    honest_only = Federation(clients=weighing(3, 0, 4)).run(2, Scripted(script))
    assert bits(full) == bits(honest_only)
    assert full.values("accepted") == {1: 3, 2: 3}


def test_an_empty_round_moves_nothing(tmp_path: Path) -> None:
    history = Federation(clients=weighing(0, 0), strategy=CountingSteps(), keep_best="-gradient_norm").run(
        3, Local(), tmp_path
    )
    assert history.model is not None
    assert history.model.tolist() == [5.0]
    now = checkpoints.load(tmp_path / "checkpoint")
    assert (now.round, now.state, now.accepted) == (3, {"steps": 0.0}, {})
    assert history.values("accepted") == {1: 2, 2: 2, 3: 2}


@Registry.add
@dataclass(frozen=True)
class CountingSteps(FedAvg):
    """Counts its steps in the state, and can misbehave."""

    spoil: str = ""

    def init(self, x: Any) -> Any:
        return {"steps": 0.0}

    def step(self, x: Any, state: Any, mean: Any, cohort: Any) -> Any:
        if self.spoil == "dtype":
            return x.astype(np.float64), state
        if self.spoil == "shape":
            return x[:-1], state
        if self.spoil == "nan":
            return x * np.float32(np.nan), state
        if self.spoil == "in place":
            x += mean["delta"]
        moved, _ = super().step(x, {}, mean, cohort)
        assert cohort.clients == tuple(sorted(cohort.clients))
        return moved, {"steps": state["steps"] + cohort.population * len(cohort.weights)}


def test_the_strategy_sees_the_cohort_that_counted(tmp_path: Path) -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield absent(name, task) if name == "s2" else reply

    Federation(clients=weighing(1, 2, 3, 0), strategy=CountingSteps()).run(2, Scripted(script), tmp_path)
    assert checkpoints.load(tmp_path / "checkpoint").state == {"steps": 2 * 4 * 2}


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        ("dtype", "step returned float64"),
        ("shape", "step returned float32"),
        ("nan", "the new model is not finite"),
        ("in place", "read-only"),
    ],
)
def test_a_bad_step_ends_the_run_before_anything_is_kept(spoil: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises((LayoutError, ValueError), match=problem):
        Federation(clients=sites(), strategy=CountingSteps(spoil=spoil)).run(1, Local(), tmp_path)
    assert checkpoints.load(tmp_path / "checkpoint").round == 0


@dataclass
class WithBuffers:
    """A model of a trainable value and a BatchNorm-like mean."""

    name: str
    target: float
    weight: int

    def initial(self) -> tuple[ModelSpec, Any]:
        arrays = {"w": np.zeros(2, np.float32), "mean": np.ones(1, np.float32), "count": np.array(0)}
        spec = ModelSpec.of(arrays, buffers=["mean"])
        return spec, spec.pack(arrays)

    def fit(self, task: Task) -> Update:
        delta = np.full(3, self.target, np.float32) - task.vectors["model"]
        return Update(self.name, task.round, {"delta": delta}, self.weight)

    def evaluate(self, task: Task) -> Evaluation:
        return Evaluation(self.name, task.round, {}, 1)

    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        pass


def test_buffers_are_averaged_while_the_strategy_moves_the_rest(tmp_path: Path) -> None:
    clients = [WithBuffers("a", 4.0, 1), WithBuffers("b", 8.0, 3)]
    history = Federation(clients=clients, strategy=FedAvg(eta=0.5)).run(1, Local(), tmp_path)  # type: ignore[arg-type]
    assert history.model is not None
    assert history.model.tolist() == [3.5, 3.5, 7.0]  # half way to 7, and 7
    spec, vector = load_model(tmp_path / "model.safetensors")
    assert spec.views(vector)["mean"].tolist() == [7.0]


# ---------------------------------------------------------------------------------------------------- evaluation


def test_means_over_sites_are_weighted_by_examples() -> None:
    history = run(1)
    found = {s.name: history.values("gradient_norm", s.name)[1] for s in sites()}
    weights = {s.name: s.weight for s in sites()}
    wanted = sum(found[n] * w for n, w in weights.items()) / sum(weights.values())
    assert history.values("gradient_norm")[1] == pytest.approx(wanted)


def test_the_matrix_scores_every_local_model_on_every_site() -> None:
    history = run(2, clients=sites(3), evaluate="matrix")
    names = [s.name for s in sites(3)]
    for number in (1, 2):
        for model in names:
            assert {s for s in names if number in history.values(f"gradient_norm@{model}", s)} == set(names)
    x = np.linspace(-0.3, 0.9, 3, dtype=np.float32)
    for model in sites(3):
        local = x + model.fit(Task(1, "fit", {"model": x})).vectors["delta"]
        for judge in sites(3):
            wanted = judge.evaluate(Task(1, "evaluate", {"model": local})).metrics["gradient_norm"]
            assert history.values(f"gradient_norm@{model.name}", judge.name)[1] == pytest.approx(wanted)
    assert not history.values("gradient_norm@site-00", "site-01").get(0)


def test_evaluation_can_be_off() -> None:
    history = run(2, evaluate="off")
    assert {r["metric"] for r in history.rows if r["site"] == ""} == {
        "accepted",
        "failed",
        "round_s",
        "bytes_down",
        "bytes_up",
    }
    assert bits(history) == bits(run(2))
    assert history.best is None


@dataclass
class Told:
    """A site whose scores are given by round; its model moves by one each round."""

    name: str
    told: Mapping[int, Any]
    weight: int = 1

    def initial(self) -> tuple[ModelSpec, Any]:
        return start(1)

    def fit(self, task: Task) -> Update:
        return Update(self.name, task.round, {"delta": np.ones(1, np.float32)}, 1)

    def evaluate(self, task: Task) -> Evaluation:
        value = self.told[task.round]
        if value is None:
            raise ValueError("no score")
        return Evaluation(self.name, task.round, {"map50": value}, self.weight)

    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        pass


def best(
    *told: Mapping[int, Any], keep: str = "map50", weights: tuple[int, ...] = (1, 1), folder: Path | None = None
) -> tuple[int, float]:
    clients: list[Any] = [Told(f"s{i}", scores, w) for i, (scores, w) in enumerate(zip(told, weights, strict=False))]
    history = Federation(clients=clients, keep_best=keep).run(max(told[0]), Local(), folder)
    assert history.best is not None
    return history.best_round, float(history.best[0])


def test_the_best_round_is_kept_and_a_tie_goes_to_the_earlier() -> None:
    assert best({0: 0.1, 1: 0.5, 2: 0.7, 3: 0.7, 4: 0.6}) == (2, 2.0)
    assert best({0: 0.9, 1: 0.5, 2: 0.7}) == (0, 0.0)
    assert best({0: 0.1, 1: 0.5, 2: -0.7, 3: 0.2}, keep="-map50") == (2, 2.0)


def test_a_mean_without_the_hardest_site_is_not_a_better_mean() -> None:
    easy, hard = {0: 0.8, 1: 0.8, 2: 0.9, 3: 0.8}, {0: 0.1, 1: 0.2, 2: None, 3: 0.1}
    assert best(easy, hard) == (1, 1.0)
    assert best(easy, {0: None, 1: 0.1, 2: 0.1, 3: 0.1}) == (2, 2.0)  # more sites come first
    assert best(easy, {0: 0.5, 1: 0.5, 2: 0.5, 3: 0.5}, weights=(1, 0)) == (2, 2.0)  # no examples, no voice


def test_the_best_model_is_on_disk_and_survives_a_resume(tmp_path: Path) -> None:
    clients: list[Any] = [Told("s0", {0: 0.1, 1: 0.9, 2: 0.2, 3: 0.3, 4: 0.4})]
    Federation(clients=clients).run(2, Local(), tmp_path)
    history = Federation(clients=clients).resume(tmp_path, 4, Local())
    assert history.best_round == 1
    assert load_model(tmp_path / "best.safetensors")[1].tolist() == [1.0]
    assert load_model(tmp_path / "model.safetensors")[1].tolist() == [4.0]


def test_a_failed_evaluation_is_recorded_and_the_round_goes_on() -> None:
    clients = [Odd(c, problems.divide, when=(1,), in_evaluate=True) if c.name == "site-02" else c for c in sites()]
    history = run(2, clients=clients)
    assert [(f.client, f.round, f.reason) for f in history.failures] == [("site-02", 1, "crashed")]
    assert 1 not in history.values("gradient_norm", "site-02")
    assert bits(history) == bits(run(2))
