"""Robust reducers in whole federations: by name, with workers, resumed, refused, and behind the gate."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import (
    Federation,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    ModelSpec,
    MultiKrum,
    NormClip,
    NumpyClient,
    TrimmedMean,
    Update,
    config,
)
from polypfed.backends import Local
from polypfed.core import audit
from polypfed.core.errors import ConfigError, QuorumError
from polypfed.core.reduce import Reducer
from polypfed.remote import clipped
from polypfed.strategies import FedAdam, FedAvg, FedAvgM, KeepBest, Registry
from polypfed.strategies.base import Strategy
from tests.problems import Scripted, absent, bits, run, sites

RULES: list[Any] = [
    Median(),
    TrimmedMean(0.3),
    Krum(f=1),
    MultiKrum(f=1),
    MultiKrum(f=1, q=3),
    GeometricMedian(),
    GeometricMedian(weights={f"site-{i:02d}": 1.0 + i for i in range(6)}, T=5, nu=1e-3),
    NormClip(),
    NormClip(norm=0.2, weights="uniform"),
    NormClip(refuse_opposed=True),
]
each = pytest.mark.parametrize("rule", RULES, ids=repr)


@each
def test_one_round_is_the_rule_applied_to_the_deltas(rule: Reducer) -> None:
    clients = sites(6)
    seen: dict[str, Update] = {}
    history = Federation(clients=clients, strategy=FedAvg(reducer=rule), evaluate="off").run(
        1,
        Local(),
        listen=lambda event: seen.update({event.site: event.reply} if isinstance(event.reply, Update) else {}),
    )
    total = rule.start({"delta": 3})
    for i, name in enumerate(sorted(seen)):
        total.add(i, seen[name])
    assert len(seen) == 6
    assert history.model == pytest.approx(clients[0].initial()[1] + total.result()["delta"], rel=1e-6)


@each
def test_a_description_builds_it_again(rule: Reducer) -> None:
    strategy = FedAdam(reducer=rule)
    Registry.check(strategy)
    assert Registry.build(Registry.describe(KeepBest(inner=strategy))) == KeepBest(inner=strategy)


@pytest.mark.parametrize("rule", [TrimmedMean(0.3), MultiKrum(f=1), GeometricMedian(), NormClip()], ids=repr)
def test_workers_and_a_split_run_change_no_bit(rule: Reducer, tmp_path: Path) -> None:
    strategy = FedAvg(reducer=rule)
    straight = bits(run(4, clients=sites(6), strategy=strategy))
    assert bits(run(4, clients=sites(6), strategy=strategy, workers=2)) == straight
    fed = Federation(clients=sites(6), strategy=strategy)
    fed.run(2, Local(), tmp_path / "run")
    assert bits(fed.resume(tmp_path / "run", 4, Local())) == straight


@each
def test_arrival_order_changes_no_bit(rule: Reducer) -> None:
    def honest(name: str, task: Any, reply: Any) -> Iterator[Any]:
        yield reply

    fed = Federation(clients=sites(6), strategy=FedAvg(reducer=rule))
    found = [fed.run(3, Scripted(honest, shuffle=order)) for order in (sorted, lambda names: sorted(names)[::-1])]
    assert bits(found[0]) == bits(found[1])


BAD = {
    "t25 nan": lambda u: replace(u, vectors={"delta": np.full_like(u.vectors["delta"], np.nan)}),
    "t26 shape": lambda u: replace(u, vectors={"delta": u.vectors["delta"][:-1]}),
    "t27 row": lambda u: replace(u, vectors={"delta": u.vectors["delta"][None]}),
    "t27 int8": lambda u: replace(u, vectors={"delta": np.zeros(3, np.int8)}),
    "t27 complex": lambda u: replace(u, vectors={"delta": np.zeros(3, np.complex64)}),
    "t28 negative": lambda u: replace(u, weight=-1),
    "t28 nan": lambda u: replace(u, weight=float("nan")),
    "t28 huge": lambda u: replace(u, weight=10**18),
}


@pytest.mark.parametrize("how", BAD)
@pytest.mark.parametrize(
    "rule", [Mean(), Median(), TrimmedMean(0.3), Krum(f=1), GeometricMedian(), NormClip()], ids=repr
)
def test_what_the_gate_refuses_leaves_the_bits_of_the_others(how: str, rule: Reducer) -> None:
    """The run with the bad site ends where the run in which it is silent ends."""

    def bad(name: str, task: Any, reply: Any) -> Iterator[Any]:
        yield BAD[how](reply) if name == "site-02" else reply

    def silent(name: str, task: Any, reply: Any) -> Iterator[Any]:
        yield absent(name, task) if name == "site-02" else reply

    fed = Federation(clients=sites(6), strategy=FedAvg(reducer=rule), evaluate="off")
    found, wanted = fed.run(2, Scripted(bad)), fed.run(2, Scripted(silent))
    assert bits(found) == bits(wanted)
    assert bits(found) != bits(fed.run(2, Local()))
    assert [f.client for f in found.failures] == ["site-02"] * 2


class Common:
    """The gradient of half the squared distance to a place that is much the same at every site."""

    def __init__(self, number: int) -> None:
        self.place = np.linspace(2, 3, 20, dtype=np.float32)
        self.place += np.random.default_rng(number).normal(0, 0.1, 20).astype(np.float32)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x - self.place


def alike(count: int) -> list[NumpyClient]:
    """Sites whose updates agree in the first rounds."""
    x0 = np.zeros(20, np.float32)
    return [NumpyClient(f"site-{i:02d}", Common(i), x0, lr=0.05, steps=2, weight=9 + i) for i in range(count)]


def turned(name: str, task: Any, reply: Any) -> Iterator[Any]:
    """Site 2 sends -4 times what it should."""
    bad = name == "site-02" and isinstance(reply, Update)
    yield replace(reply, vectors={k: np.float32(-4) * v for k, v in reply.vectors.items()}) if bad else reply


def silent(name: str, task: Any, reply: Any) -> Iterator[Any]:
    yield absent(name, task) if name == "site-02" else reply


@pytest.mark.parametrize("strategy", [FedAvg(), FedAdam(eta=0.1, tau=0.01), FedAvgM()], ids=lambda s: type(s).__name__)
def test_what_points_against_the_others_leaves_their_bits(strategy: Strategy, tmp_path: Path) -> None:
    fed = Federation(clients=alike(5), strategy=clipped(strategy), evaluate="off", quorum=4)
    found = fed.run(3, Scripted(turned), tmp_path / "turned")
    assert bits(found) == bits(fed.run(3, Scripted(silent)))
    assert bits(found) != bits(fed.run(3, Local()))
    failed = [(f.client, f.round, f.reason, f.detail) for f in found.failures]
    assert failed == [("site-02", n, "opposed", "points against the other 4, which agree") for n in (1, 2, 3)]
    assert [(r["value"]) for r in found.rows if r["metric"] in ("accepted", "failed")] == [4, 1] * 3
    assert not [r for r in found.rows if r["site"] == "site-02"]
    log = [
        (e["event"], e["round"], e["facts"].get("reason")) for e in audit.entries(tmp_path / "turned" / "audit.jsonl")
    ]
    assert [e for e in log if e[0] == "failure"] == [("failure", n, "opposed") for n in (1, 2, 3)]
    clip = Federation(clients=alike(5), strategy=replace(clipped(strategy), reducer=NormClip()), evaluate="off")
    assert not clip.run(3, Scripted(turned)).failures
    assert bits(clip.run(3, Scripted(turned))) != bits(found)


def test_a_run_in_which_it_is_refused_resumes_to_the_same_bits(tmp_path: Path) -> None:
    fed = Federation(clients=alike(5), strategy=clipped(FedAvgM()), evaluate="off", quorum=4)
    whole = fed.run(3, Scripted(turned))
    fed.run(1, Scripted(turned), tmp_path)
    assert bits(fed.resume(tmp_path, 3, Scripted(turned))) == bits(whole)


def test_what_is_refused_counts_for_no_quorum(tmp_path: Path) -> None:
    fed = Federation(clients=alike(5), strategy=clipped(FedAvg()), evaluate="off", quorum=5)
    with pytest.raises(QuorumError, match="4 accepted updates, the quorum is 5"):
        fed.run(1, Scripted(turned), tmp_path)
    assert "opposed" in (tmp_path / "failures.jsonl").read_text()


def test_unlike_sites_are_refused_nothing_all_the_way_to_their_optimum() -> None:
    """Their places add up to nothing, so that at the optimum each points against all others."""

    class Own(Common):
        def __init__(self, number: int) -> None:
            self.place = (np.eye(5, 20) - np.full((5, 20), 1 / 5) * (np.arange(20) < 5))[number].astype(np.float32)

    x0 = np.linspace(1, 2, 20, dtype=np.float32)
    clients = [NumpyClient(f"site-{i:02d}", Own(i), x0, lr=0.2, steps=2, weight=10) for i in range(5)]
    fed = Federation(clients=clients, strategy=clipped(FedAvg()), evaluate="off")
    history = fed.run(60, Local())
    assert not history.failures
    assert abs(history.model).max() < 1e-3


def test_t23_counters_keep_type_and_value_under_every_rule() -> None:
    """Integers are not among what is reduced; flwr and nvflare make float64 fractions of them."""
    spec = ModelSpec.of({"w": np.ones(3, np.float32), "count": np.array(3)})
    assert spec.size == 3
    assert [name for name, *_ in spec.local] == ["count"]


@pytest.mark.parametrize("rule", [r for r in RULES if getattr(r, "weights", "uniform") == "uniform"], ids=repr)
def test_an_outlier_within_the_gates_bounds_is_withstood(rule: Reducer) -> None:
    """Six sites near 1, one of them sends 1000 instead."""

    def bad(name: str, task: Any, reply: Any) -> Iterator[Any]:
        yield replace(reply, vectors={"delta": reply.vectors["delta"] * 0 + 1000}) if name == "site-05" else reply

    clients = [
        NumpyClient(f"site-{i:02d}", lambda x, i=i: x - (1 + 0.01 * i), x0=[0.0, 0.0], lr=0.5, steps=5, weight=1)
        for i in range(6)
    ]
    history = Federation(clients=clients, strategy=FedAvg(reducer=rule), evaluate="off", max_norm=1e6).run(
        8, Scripted(bad)
    )
    assert not history.failures
    assert history.model == pytest.approx([1, 1], abs=0.3)


def test_too_few_sites_are_refused_before_round_1() -> None:
    with pytest.raises(ConfigError, match="Krum needs at least 7 updates, 6 sites are asked"):
        run(clients=sites(6), strategy=FedAvg(reducer=Krum(f=2)))
    with pytest.raises(ConfigError, match="MultiKrum needs at least 5 updates, 4 sites are asked"):
        run(clients=sites(6), strategy=FedAvg(reducer=MultiKrum(f=1)), per_round=4)
    with pytest.raises(ConfigError, match=r"weights\.site-03: has no weight"):
        run(clients=sites(4), strategy=FedAvg(reducer=NormClip(weights={f"site-{i:02d}": 1.0 for i in range(3)})))


def test_a_round_with_too_few_updates_is_void_and_says_so() -> None:
    def some(name: str, task: Any, reply: Any) -> Iterator[Any]:
        yield absent(name, task) if name > "site-03" else reply

    fed = Federation(clients=sites(6), strategy=FedAvg(reducer=Krum(f=1)), quorum=1, retries=0)
    with pytest.raises(QuorumError, match="4 updates with examples, Krum needs 5"):
        fed.run(1, Scripted(some))


DATA = "[data.synth]\nsites = 6\n[strategy]\nname = 'fedavg'\n"


def test_in_a_file() -> None:
    found = config.parse(DATA + "[strategy.reducer]\nname = 'krum'\nf = 1\n", Path("study.toml"), {})
    assert Registry.build(found.strategy) == FedAvg(reducer=Krum(f=1))


@pytest.mark.parametrize(
    ("reducer", "words"),
    [
        ("name = 'krum'", "needs the setting 'f'"),
        ("name = 'krum'\nf = -1", "f: -1"),
        ("name = 'krum'\nq = 2\nf = 1", "krum has no setting 'q'"),
        ("name = 'trimmedmean'\nshare = 0.5", "share"),
        ("name = 'krumm'\nf = 1", "no strategy or reducer is called 'krumm'"),
        ("name = 'fedadam'", "is no reducer"),
    ],
)
def test_mistakes_in_a_file(reducer: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.parse(DATA + f"[strategy.reducer]\n{reducer}\n", Path("study.toml"), {})
