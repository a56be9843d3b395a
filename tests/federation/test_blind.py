"""Encrypted rounds: the server sums ciphertext, the sites step; against the same rounds with nothing encrypted."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import Failure, Federation, History, Task, Update
from polypfed.backends import Local
from polypfed.clients.outbox import plan_of
from polypfed.core.messages import Reply
from polypfed.core.model import Vector
from polypfed.core.reduce import BUFFERS
from polypfed.core.rundir import load_model
from polypfed.core.seeds import derive, generator
from polypfed.federation.sums import SumLog
from polypfed.privacy.errors import IncompatiblePrivacy, KeyRefused
from polypfed.privacy.keyring import IDENTITY, open_keys
from polypfed.privacy.keys import unwrap
from polypfed.privacy.modes import stages
from polypfed.privacy.stage import Encrypt, Quantise, Stage
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
from tests.problems import START, A, B, Scripted, absent, clients, scores

pytest.importorskip("tenseal")
pytest.importorskip("cryptography")


def he(cap: int | None = 100) -> tuple[Stage, ...]:
    return Quantise(bits=11, cap=cap, bound=1.0), Encrypt(snapshot=4)


STRATEGIES = [FedAvg(), FedAvgM(), FedAdam(), Scaffold(), FedNova()]


def stages_for(strategy: Strategy) -> tuple[Stage, ...]:
    return he(None if isinstance(strategy, Scaffold) else 100)


def fed(strategy: Strategy = STRATEGIES[0], **settings: Any) -> Federation:
    usual = {"clients": clients(), "stages": stages_for(strategy)}
    return Federation(strategy=strategy, **(usual | settings))


def model(folder: Path, site: str = "s0") -> Vector:
    return load_model(folder / "sites" / site / "model.safetensors")[1]


def in_clear(strategy: Strategy, rounds: int) -> Vector:
    """The same rounds with integers added in the open: no keys, frames, servers or ciphertexts."""
    sites = clients()
    spec, x = sites[0].initial()
    plan = plan_of(strategy, spec, stages_for(strategy), len(sites))
    state, grid = strategy.init(x), plan.first_grid(x)
    residuals = [np.zeros(plan.length, np.float32) for _ in sites]
    for number in range(1, rounds + 1):
        codec, total = plan.codec(grid), 0
        for i, site in enumerate(sites):
            seed = derive(0, "client", number, site.name)
            vectors = {"model": x, **strategy.broadcast(x, state)}
            update = site.fit(Task(number, "fit", vectors, {"seed": seed, "strategy": Registry.describe(strategy)}))
            scale = np.float32(strategy.reducer.scale(update))  # type: ignore[attr-defined]
            flat = plan.join({**update.vectors, "delta": update.vectors["delta"] * scale})
            made = codec.encode(
                flat, update.weight, generator(derive(0, "stages"), "rounding", number, site.name), residuals[i]
            )
            assert made.residual is not None
            residuals[i], total = made.residual, total + made.slots.astype(np.uint64)
        decoded = codec.decode(total)
        parts = plan.split(decoded.mean)
        parts.pop(BUFFERS)
        names = tuple(s.name for s in sites)
        x, state = strategy.step(x, state, parts, Cohort(number, names, (1, 1, 1), 3))
        grid = grid.following(decoded.spans)
    return x


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_the_bits_are_those_of_the_same_rounds_without_encryption(tmp_path: Path, strategy: Strategy) -> None:
    history = fed(strategy).run(5, Local(), tmp_path)
    assert not history.failures
    wanted = in_clear(strategy, 5)
    assert {model(tmp_path, s).tobytes() for s in ("s0", "s1", "s2")} == {wanted.tobytes()}
    plain = Federation(clients=clients(), strategy=strategy).run(5, Local()).model
    assert plain is not None
    assert 0 < np.abs(wanted - plain).max() < 0.05  # quantised, yet the same training


def test_parts_that_stay_at_a_site_are_neither_sent_nor_asked_for(tmp_path: Path) -> None:
    strategy = FedPer(local=("backbone",))
    encrypted = Federation(clients=sample_sites(3), strategy=strategy, stages=he(1000)).run(3, Local(), tmp_path)
    plain = Federation(clients=sample_sites(3), strategy=strategy).run(3, Local())
    assert not encrypted.failures
    assert plain.model is not None
    assert 0 < plain.model.size < sample_sites(1)[0].initial()[0].size
    assert model(tmp_path, encrypted.rows[0]["site"]) == pytest.approx(plain.model, abs=0.05)


def test_the_limit_is_that_of_the_plain_run(tmp_path: Path) -> None:
    """What rounding loses comes later, so it does not move the limit."""
    fed(Scaffold()).run(40, Local(), tmp_path)
    optimum = sum(a * b for a, b in zip(A[:3], B[:3], strict=True)) / sum(A[:3])
    assert model(tmp_path) == pytest.approx([optimum] * 50, abs=1e-5)


def test_the_server_holds_neither_model_nor_key(tmp_path: Path) -> None:
    history = fed(FedAdam()).run(6, Local(), tmp_path)
    assert history.model is None
    assert history.best is None
    assert not list(tmp_path.glob("*.safetensors"))
    secrets: list[bytes] = [model(tmp_path)[:8].tobytes(), START[:8].tobytes()]
    for site in ("s0", "s1", "s2"):
        secrets.append((tmp_path / "sites" / site / "keys" / "identity.key").read_bytes()[-64:-32])
        for path in (tmp_path / "sites" / site / "state").iterdir():
            packed = path.read_bytes()
            secrets.append(packed[packed.index(b"packed") + 200 :][:64])
    kept = [p for p in tmp_path.rglob("*") if p.is_file() and "sites" not in p.relative_to(tmp_path).parts]
    assert {"sums", "checkpoint", "keys"} <= {p.relative_to(tmp_path).parts[0] for p in kept}
    for path in kept:
        for secret in secrets:
            assert secret not in path.read_bytes(), path
    assert not any((p.stat().st_mode & 0o077) for p in tmp_path.rglob("*.key"))


def test_what_travels_is_ciphertext_only(tmp_path: Path) -> None:
    seen: set[tuple[str, str]] = set()

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        assert isinstance(reply, Update)
        seen.update(("down", n.split(".")[0]) for n in task.vectors)
        seen.update(("up", n.split(".")[0]) for n in reply.vectors)
        for vector in (*task.vectors.values(), *reply.vectors.values()):
            assert vector.dtype == np.uint8
            assert START[:4].tobytes() not in vector.tobytes()
        yield reply

    fed().run(6, Scripted(script), tmp_path)
    down = {("down", n) for n in ("key", "sum")}
    assert seen == down | {("up", "frame"), ("up", "snapshot"), ("up", "key"), ("up", "id")}


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_resume_gives_the_bits_of_a_straight_run(tmp_path: Path, stop: int) -> None:
    fed(Scaffold(), per_round=2).run(7, Local(), tmp_path / "straight")
    fed(Scaffold(), per_round=2).run(stop, Local(), tmp_path / "broken")
    fed(Scaffold(), per_round=2).resume(tmp_path / "broken", 7, Local())
    assert model(tmp_path / "broken").tobytes() == model(tmp_path / "straight").tobytes()


def test_workers_give_the_same_bits(tmp_path: Path) -> None:
    one = fed(FedAdam()).run(4, Local(), tmp_path / "one")
    two = fed(FedAdam()).run(4, Local(workers=2), tmp_path / "two")
    assert model(tmp_path / "one").tobytes() == model(tmp_path / "two").tobytes()
    assert scores(one) == scores(two)


def test_a_site_that_was_away_catches_up_by_the_log_and_by_a_snapshot(tmp_path: Path) -> None:
    """s2 hears of nothing until round 8; a snapshot has then replaced the first sums."""

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield absent(name, task) if name == "s2" and task.round < 8 else reply

    history = fed(FedAvgM()).run(9, Scripted(script), tmp_path)
    assert {f.client for f in history.failures} == {"s2"}
    assert {f.round for f in history.failures} == set(range(1, 8))
    assert len({model(tmp_path, s).tobytes() for s in ("s0", "s1", "s2")}) == 1
    assert len(list((tmp_path / "sums").glob("sum-*"))) < 8


def test_a_site_whose_folder_was_lost_comes_back(tmp_path: Path) -> None:
    """Its model and its place come from the snapshot and the log: nothing a site keeps is needed twice."""
    fed().run(6, Local(), tmp_path)
    for path in (tmp_path / "sites" / "s1" / "state").iterdir():
        path.unlink()
    history = fed().resume(tmp_path, 8, Local())
    assert len({model(tmp_path, s).tobytes() for s in ("s0", "s1", "s2")}) == 1
    assert not [f for f in history.failures if f.round == 8]


def changed(change: Any, when: int = 2) -> Scripted:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        assert isinstance(reply, Update)
        bad = name == "s1" and task.round == when
        yield change(reply) if bad else reply

    return Scripted(script)


def with_frame(update: Update, frame: bytes) -> Update:
    vectors = {**update.vectors, "frame.00000": np.frombuffer(frame, np.uint8)}
    return Update(update.client, update.round, vectors, update.weight, update.metrics, update.run)


def flipped(update: Update) -> Update:
    frame = bytearray(update.vectors["frame.00000"].tobytes())
    frame[500] ^= 1
    return with_frame(update, bytes(frame))


def cut(update: Update) -> Update:
    return with_frame(update, update.vectors["frame.00000"].tobytes()[:-1])


def missing(update: Update) -> Update:
    return Update(update.client, update.round, {}, 1, {}, update.run)


def in_floats(update: Update) -> Update:
    return Update(update.client, update.round, {"delta": START}, 1, {}, update.run)


@pytest.mark.parametrize(
    ("change", "reason"), [(flipped, "signature"), (cut, "size"), (missing, "incomplete"), (in_floats, "keys")]
)
def test_a_broken_update_is_refused_and_the_round_goes_on(tmp_path: Path, change: Any, reason: str) -> None:
    history = fed().run(3, changed(change), tmp_path)
    assert [(f.client, f.round, f.reason) for f in history.failures] == [("s1", 2, reason)]
    assert len({model(tmp_path, s).tobytes() for s in ("s0", "s1", "s2")}) == 1


def test_an_old_frame_is_not_counted_again(tmp_path: Path) -> None:
    kept: list[bytes] = []

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        assert isinstance(reply, Update)
        if name == "s1" and task.round == 1 and "frame.00000" in reply.vectors:
            kept.append(reply.vectors["frame.00000"].tobytes())
        yield with_frame(reply, kept[0]) if name == "s1" and task.round == 3 else reply

    history = fed().run(3, Scripted(script), tmp_path)
    assert [(f.client, f.round, f.reason) for f in history.failures] == [("s1", 3, "stale-round")]


def test_what_a_blind_server_cannot_do_is_refused_at_construction() -> None:
    from polypfed import Krum

    for settings, words in (
        ({"strategy": FedAvg(reducer=Krum(f=0))}, "Krum must see single updates"),
        ({"strategy": KeepBest()}, "KeepBest decides on the server"),
        ({"evaluate": "matrix"}, "shows each site's model"),
        ({"clients": clients(1)}, "2 are needed"),
    ):
        with pytest.raises(IncompatiblePrivacy, match=words):
            Federation(**({"clients": clients(), "stages": he()} | settings))  # type: ignore[arg-type]


def test_lost_updates_do_not_stop_the_round(tmp_path: Path) -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield absent(name, task) if (name, task.round) in {("s0", 2), ("s2", 3)} else reply

    history: History = fed(Scaffold()).run(5, Scripted(script), tmp_path)
    assert [(f.client, f.round) for f in history.failures] == [("s0", 2), ("s2", 3)]
    assert len({model(tmp_path, s).tobytes() for s in ("s0", "s1", "s2")}) == 1
    assert isinstance(history.failures[0], Failure)


@pytest.mark.parametrize("mode", ["he", "hybrid"])
def test_a_member_with_a_new_identity_means_a_new_job_key(tmp_path: Path, mode: Any) -> None:
    """s1's identity was revoked in mid-run. The key rotates; s1 misses a round, then catches up by a snapshot."""
    line = stages(mode, cap=100, bound=1.0)
    fed(stages=line, clients=clients(4)).run(2, Local(), tmp_path)
    revoked, roster = open_keys(tmp_path / "sites" / "s1" / "keys")
    (tmp_path / "sites" / "s1" / "keys" / IDENTITY).unlink()  # a simulation makes another, and the roster of all
    history = fed(stages=line, clients=clients(4)).resume(tmp_path, 6, Local())
    assert {(f.client, f.round) for f in history.failures} <= {("s1", 2), ("s1", 3)}
    assert len({model(tmp_path, s).tobytes() for s in ("s0", "s1", "s2", "s3")}) == 1
    found, new = SumLog(tmp_path / "sums").keys(), open_keys(tmp_path / "keys")[1]
    assert [found[epoch].about["roster"] for epoch in (1, 2)] == [r.digest.hex() for r in (roster, new)]
    for known in (roster, new):
        with pytest.raises(KeyRefused):
            unwrap(found[2].pieces[1], revoked, known, history_run(tmp_path))


def history_run(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text())["run"])
