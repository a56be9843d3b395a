import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import Evaluation, Failure, Federation, ModelSpec, NumpyClient, Task, Update
from polypfed.backends import Local
from polypfed.core import checkpoint as checkpoints
from polypfed.core.errors import CheckpointError, ConfigError, LayoutError, QuorumError
from polypfed.core.messages import Reply
from polypfed.core.rundir import RunDirectory, load_model
from polypfed.federation import Event
from polypfed.strategies import Base, FedAvg, Registry
from tests import problems
from tests.problems import Odd, Quadratic, Scripted, absent, bits, honest, run, scores, sites

# ------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"quorum": 0}, "quorum"),
        ({"quorum": 5}, "quorum"),
        ({"quorum": 3, "per_round": 2}, "quorum"),
        ({"quorum": True}, "quorum"),
        ({"per_round": 0}, "per_round"),
        ({"per_round": 5}, "per_round"),
        ({"per_round": "2"}, "per_round"),
        ({"retries": -1}, "retries"),
        ({"seed": 1.0}, "seed"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": float("nan")}, "deadline"),
        ({"deadline": "1 h"}, "deadline"),
        ({"max_norm": 0.0}, "max_norm"),
        ({"max_norm": float("nan")}, "max_norm"),
        ({"evaluate": "globl"}, "evaluate"),
        ({"clients": [*sites(2), sites(1)[0]]}, "clients"),
        ({"clients": [NumpyClient("../a", Quadratic(1, 1), [0.0])]}, "clients"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        Federation(**({"clients": sites(4)} | settings))


def test_a_strategy_nobody_registered_is_refused() -> None:
    @dataclass(frozen=True)
    class Mine(Base):
        def step(self, x: Any, state: Any, mean: Any, cohort: Any) -> Any:
            return x, state

    with pytest.raises(ConfigError, match="no strategy is called 'mine'"):
        Federation(clients=sites(), strategy=Mine())


def test_there_must_be_sites_and_enough_of_them() -> None:
    with pytest.raises(ConfigError, match="there is no site"):
        Federation().run(1, Local())
    remote = Scripted(honest)
    remote.host(sites(3), None)
    with pytest.raises(ConfigError, match=r"^quorum: 4 is not a whole number from 1 to 3"):
        Federation(quorum=4, initial=start()).run(1, remote)


@pytest.mark.parametrize("rounds", [-1, 1.0, True, "3"])
def test_rounds_is_a_whole_number(rounds: Any) -> None:
    with pytest.raises(ConfigError, match=r"^rounds: "):
        Federation(clients=sites()).run(rounds, Local())


def start(size: int = 3) -> tuple[ModelSpec, Any]:
    arrays = {"x": np.zeros(size, np.float32)}
    spec = ModelSpec.of(arrays)
    return spec, spec.pack(arrays)


@pytest.mark.parametrize(
    ("x", "problem"),
    [
        (np.zeros(3), "the vector is float64"),
        (np.zeros(4, np.float32), "not float32"),
        (np.array([0, np.nan, 0], np.float32), "the initial model is not finite"),
    ],
)
def test_an_initial_model_that_does_not_fit_is_refused(x: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=problem):
        Federation(clients=sites(), initial=(start()[0], x)).run(1, Local(), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_backend_with_names_that_are_no_names_is_refused() -> None:
    @dataclass
    class Remote(Scripted):
        clients: Any = ("../../etc",)

    with pytest.raises(ConfigError, match="cannot name a site"):
        Federation(initial=start()).run(1, Remote(honest))


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


@dataclass
class Recording(Scripted):
    """Notes every task."""

    tasks: list[tuple[str, Task]] = field(default_factory=list)

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        self.tasks += tasks.items()
        return super().exchange(tasks, deadline)


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
