"""Rounded updates in clear: integers are added, sites follow by the sums, and both ends have the same bits."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import Failure, Federation, Krum, Mean, NumpyClient, Task, Update
from polypfed.backends import Local
from polypfed.core import audit
from polypfed.core.errors import QuorumError
from polypfed.core.messages import Reply
from polypfed.federation.sums import SumLog
from polypfed.privacy.errors import IncompatiblePrivacy
from polypfed.privacy.keyring import provision
from polypfed.privacy.ledger import Ledger
from polypfed.privacy.stage import Clip, Encrypt, Noise, Quantise, Stage, TopK
from polypfed.strategies import (
    Cohort,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedNova,
    FedPer,
    KeepBest,
    Registry,
    Scaffold,
    Strategy,
)
from polypfed.testing import sample_sites
from tests.problems import START, A, B, Quadratic, Scripted, absent, bits, clients, scores

STRATEGIES = [FedAvg(), FedAvgM(), FedAdam(), Scaffold(), FedNova()]


def rounded(strategy: Strategy, levels: float = 11) -> tuple[Stage, ...]:
    return (Quantise(bits=levels, cap=None if isinstance(strategy, Scaffold) else 100, bound=1.0),)


def fed(strategy: Strategy = STRATEGIES[0], **settings: Any) -> Federation:
    return Federation(strategy=strategy, **({"clients": clients(), "stages": rounded(strategy)} | settings))


def model(history: Any) -> Any:
    assert history.model is not None
    return history.model


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_it_trains_as_the_plain_run_does(strategy: Strategy) -> None:
    history = fed(strategy).run(5, Local())
    plain = Federation(clients=clients(), strategy=strategy).run(5, Local())
    assert not history.failures
    assert 0 < np.abs(model(history) - model(plain)).max() < 0.05


def test_the_limit_is_that_of_the_plain_run() -> None:
    """Three levels: what rounding loses comes later, so it does not move the limit."""
    history = fed(Scaffold(), stages=rounded(Scaffold(), 1.5)).run(150, Local())
    optimum = sum(a * b for a, b in zip(A[:3], B[:3], strict=True)) / sum(A[:3])
    assert model(history) == pytest.approx([optimum] * 50, abs=1e-3)


@pytest.mark.parametrize("strategy", [FedAvg(), FedAdam()], ids=lambda s: type(s).__name__)
def test_an_encrypted_run_of_the_same_levels_has_the_same_bits(tmp_path: Path, strategy: Strategy) -> None:
    """The protocol hides nothing and changes nothing. Where lanes hold other levels, only rounding differs."""
    pytest.importorskip("tenseal")
    from polypfed.core.rundir import load_model
    from polypfed.privacy.params import HEParams

    levels = HEParams.for_sites(3, bits=11).slots.levels
    packed = fed(strategy, stages=rounded(strategy, np.log2(levels + 1))).run(4, Local())
    encrypted = (*rounded(strategy, 11), Encrypt())
    fed(strategy, stages=encrypted).run(4, Local(), tmp_path)
    assert load_model(tmp_path / "sites" / "s0" / "model.safetensors")[1].tobytes() == model(packed).tobytes()


def test_few_bytes_travel_and_the_model_does_not() -> None:
    """Five levels: two bits a value up, three down and nothing in the first round, against 32 each."""
    seen: dict[tuple[str, str], int] = {}
    start = np.linspace(-1, 1, 100_000).astype(np.float32)

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        assert isinstance(reply, Update)
        for way, vectors in (("down", task.vectors), ("up", reply.vectors)):
            for key, vector in vectors.items():
                seen[way, key] = vector.nbytes
        yield reply

    history = fed(clients=clients(start=start), stages=rounded(FedAvg(), 2.3)).run(3, Scripted(script))
    assert not history.failures
    assert set(seen) == {("up", "id"), ("up", "levels"), ("down", "sum.1"), ("down", "sum.2")}
    plain = 4 * start.size
    assert seen["up", "levels"] < 2.6 / 32 * plain
    assert seen["down", "sum.2"] < 3.6 / 32 * plain
    assert history.values("bytes_down")[1] == 0
    assert history.values("bytes_up")[3] == pytest.approx(3 * seen["up", "levels"], rel=0.2)


def test_sites_that_begin_elsewhere_get_the_whole_once() -> None:
    """A model of the server's own, as one that goes on from a release."""
    spec, _ = clients()[0].initial()
    whole: list[tuple[str, str, int]] = []

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        if "whole" in task.vectors:
            whole.append((name, task.kind, task.round))
        yield reply

    other = np.linspace(2, 3, 50).astype(np.float32)
    mixed = [*clients(2), NumpyClient("s2", Quadratic(A[2], B[2]), other, lr=0.1, steps=5, weight=70)]
    history = Federation(clients=mixed, initial=(spec, START), stages=rounded(FedAvg())).run(4, Scripted(script))
    assert not history.failures
    assert whole == [("s2", "fit", 1)]
    wanted = fed().run(4, Local())
    assert bits(history) == bits(wanted)


def test_a_site_that_was_away_follows_by_the_sums_or_gets_the_whole() -> None:
    """The sums are kept while they are shorter than the model together: of 50 values that is none but the last."""
    came: list[set[str]] = []

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        away = name == "s2" and 2 < task.round < 6
        if name == "s2" and task.kind == "fit" and task.round == 6:
            came.append({key.partition(".")[0] for key in task.vectors})
        yield absent(name, task) if away else reply

    small = fed(FedAvgM()).run(8, Scripted(script))
    large = fed(
        FedAvgM(), clients=clients(start=np.linspace(0, 1, 20_000).astype(np.float32)), stages=rounded(FedAvg(), 2.3)
    ).run(8, Scripted(script))
    assert came == [{"whole"}, {"sum"}]
    for history in (small, large):
        assert {(f.client, f.round) for f in history.failures} == {("s2", n) for n in (3, 4, 5)}
        assert history.values("accepted")[8] == 3


def test_resume_gives_the_bits_of_a_straight_run(tmp_path: Path) -> None:
    straight = fed(Scaffold(), per_round=2).run(7, Local(), tmp_path / "straight")
    for stop in (1, 3, 5):
        fed(Scaffold(), per_round=2).run(stop, Local(), tmp_path / str(stop))
        assert bits(fed(Scaffold(), per_round=2).resume(tmp_path / str(stop), 7, Local())) == bits(straight)
    assert SumLog(tmp_path / "straight" / "sums").rounds[-1] == 7


def test_workers_give_the_same_bits() -> None:
    one, two = fed(FedAdam()).run(4, Local()), fed(FedAdam()).run(4, Local(workers=2))
    assert bits(one) == bits(two)
    assert scores(one) == scores(two)


def test_a_site_whose_folder_was_lost_comes_back(tmp_path: Path) -> None:
    """It misses a round, for only then the server knows."""
    fed().run(4, Local(), tmp_path)
    for path in (tmp_path / "sites" / "s1" / "state").iterdir():
        path.unlink()
    history = fed().resume(tmp_path, 7, Local())
    assert {(f.client, f.round, f.reason) for f in history.failures} == {("s1", 5, "state")}
    assert history.values("accepted")[7] == 3


def test_a_site_that_comes_to_another_model_says_so_and_gets_the_whole() -> None:
    """As where its arithmetic differs from the server's."""
    strategy = Drifting()
    object.__setattr__(strategy, "home", True)  # the sites have instances of their own
    history = fed(strategy).run(4, Local())
    assert [(f.client, f.round, f.reason) for f in history.failures] == [(f"s{i}", 1, "state") for i in range(3)]
    assert "another model of round 1" in history.failures[0].detail
    assert [history.values("accepted")[n] for n in (1, 2, 3, 4)] == [3, 3, 3, 3]


@Registry.add
class Drifting(FedAvg):
    """Its first step leads the sites elsewhere."""

    def step(self, x: Any, state: Any, mean: Any, cohort: Cohort) -> Any:
        moved, after = super().step(x, state, mean, cohort)
        return moved + np.float32(cohort.round == 1 and not hasattr(self, "home")), after


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda u: {"levels": u.vectors["levels"][:-1]}, "body"),
        (lambda u: {"levels": np.concatenate([u.vectors["levels"], u.vectors["levels"][:1]])}, "body"),
        (lambda u: {"levels": np.zeros(64, np.uint8)}, "body"),
        (lambda u: {}, "keys"),
        (lambda u: {"delta": START}, "keys"),
        (lambda u: {"levels": START}, "dtype"),
    ],
)
def test_a_broken_update_is_refused_and_the_round_goes_on(change: Any, reason: str) -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        assert isinstance(reply, Update)
        bad = name == "s1" and task.round == 2 and task.kind == "fit"
        yield replace(reply, vectors=change(reply)) if bad else reply

    history = fed().run(3, Scripted(script))
    assert [(f.client, f.round, f.reason) for f in history.failures] == [("s1", 2, reason)]
    assert history.values("accepted")[3] == 3


def test_examples_that_are_not_those_in_the_sum_and_large_updates_are_refused() -> None:
    def claims(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        assert isinstance(reply, Update)
        yield replace(reply, weight=99) if name == "s1" and reply.weight else reply

    history = fed().run(1, Scripted(claims))
    assert [(f.client, f.reason) for f in history.failures] == [("s1", "weight")]
    history = fed(max_norm=2.0).run(1, Local())
    assert {f.reason for f in history.failures} == {"norm"}


def test_an_old_update_is_not_counted_again() -> None:
    kept: list[Update] = []

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        assert isinstance(reply, Update)
        if name == "s1" and task.round == 1 and task.kind == "fit":
            kept.append(reply)
        yield replace(kept[0], round=3) if name == "s1" and task.round == 3 else reply

    history = fed().run(3, Scripted(script))
    assert [(f.client, f.round, f.reason) for f in history.failures] == [("s1", 3, "wrong-parameters")]


def test_signatures_and_logs_name_the_model_that_was_not_sent(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    provision(["s0", "s1", "s2"], tmp_path)
    history = fed(keys=tmp_path / "keys").run(3, Local(), tmp_path)
    assert not history.failures
    commits = [e["subject"] for e in audit.entries(tmp_path / "audit.jsonl") if e["event"] == "commit"]
    fits = [e["subject"] for e in audit.entries(tmp_path / "sites" / "s1" / "audit.jsonl") if e["event"] == "fit"]
    assert fits[1:] == commits[:-1]
    assert commits[-1] == audit.sha256(model(history).data)

    def forged(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        assert isinstance(reply, Update)
        yield replace(reply, base="0" * 64)

    with pytest.raises(QuorumError):
        fed(keys=tmp_path / "keys").run(1, Scripted(forged))


def test_lost_updates_and_empty_rounds_do_not_stop_it() -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        assert isinstance(reply, Update)
        if task.kind == "fit" and task.round == 2:
            reply = replace(reply, vectors={}, weight=0)
        yield absent(name, task) if (name, task.round) in {("s0", 3), ("s2", 4)} else reply

    history = fed().run(5, Scripted(script))
    assert [(f.client, f.round) for f in history.failures] == [("s0", 3), ("s2", 4)]
    assert isinstance(history.failures[0], Failure)


def test_it_goes_with_fewer_values_with_parts_that_stay_and_with_noise_at_the_site() -> None:
    thinned = fed(stages=(TopK(share=0.5), *rounded(FedAvg()))).run(6, Local())
    assert not thinned.failures
    own, line = FedPer(local=("backbone",)), (Quantise(bits=9, cap=1000, bound=1.0),)
    assert not Federation(clients=sample_sites(3), strategy=own, stages=line).run(3, Local()).failures
    clip = Clip(1.0)
    even = FedAvg(reducer=Mean("uniform"))
    noised = fed(
        even, stages=(clip, Noise(1.0, where="site", clip=clip), Quantise(bits=9, bound=4.0)), budget=Ledger(50, 1e-5)
    ).run(3, Local())
    assert not noised.failures


def test_what_does_not_go_together_is_refused_at_construction() -> None:
    settings: dict[str, Any]
    for settings, words in (
        ({"strategy": FedAvg(reducer=Krum(f=0)), "stages": (Quantise(),)}, "the sites get their sum"),
        ({"strategy": KeepBest()}, "when the sites have made the step"),
        ({"stages": (TopK(common=False), *rounded(FedAvg()))}, "does not add up under Quantise"),
        ({"evaluate": "matrix"}, "shows each site's model"),
    ):
        with pytest.raises(IncompatiblePrivacy, match=words):
            fed(**settings)
