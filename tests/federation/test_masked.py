"""Masked rounds: the server learns the sum and the model, and no single update."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import Federation, NumpyClient, Task, Update
from polypfed.backends import Local
from polypfed.clients.outbox import plan_of
from polypfed.core.errors import LayoutError, QuorumError
from polypfed.core.messages import Reply
from polypfed.core.rundir import load_model
from polypfed.federation.sums import SumLog
from polypfed.privacy.errors import FrameRefused, IncompatiblePrivacy
from polypfed.privacy.he import Accumulator, open_sum
from polypfed.privacy.keyring import open_keys
from polypfed.privacy.keys import unwrap
from polypfed.privacy.modes import stages
from polypfed.privacy.plan import from_vectors
from polypfed.privacy.seal import KeyHolder
from polypfed.strategies import FedAdam, FedAvg, Scaffold, Strategy
from tests.problems import Quadratic, Scripted, absent, bits, clients

pytest.importorskip("cryptography")


def fed(strategy: Strategy | None = None, mode: Any = "secagg", **settings: Any) -> Federation:
    strategy = strategy or FedAvg()
    cap = None if isinstance(strategy, Scaffold) else 100
    line = stages(mode, cap=cap, bound=1.0, bits=11 if mode == "secagg" else 9)
    return Federation(**({"clients": clients(4), "strategy": strategy, "stages": line} | settings))


@pytest.mark.parametrize("strategy", [FedAvg(), FedAdam(), Scaffold()], ids=lambda s: type(s).__name__)
def test_it_trains_as_the_plain_run_does(strategy: Strategy) -> None:
    history = fed(strategy).run(8, Local())
    plain = Federation(clients=clients(4), strategy=strategy).run(8, Local())
    assert not history.failures
    assert history.model is not None
    assert plain.model is not None
    assert 0 < np.abs(history.model - plain.model).max() < 0.02


def test_one_seed_gives_one_result_though_the_masks_are_new() -> None:
    assert bits(fed(FedAdam()).run(4, Local())) == bits(fed(FedAdam()).run(4, Local()))


@pytest.mark.parametrize("lost_in", ["mask", "shares", "confirm", "reveal"])
def test_the_round_goes_on_without_a_site_that_is_lost(lost_in: str) -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        phase = task.config["stages"]["phase"]
        yield absent(name, task) if name == "s1" and task.round == 2 and phase == lost_in else reply

    history = fed().run(3, Scripted(script))
    assert {(f.client, f.round) for f in history.failures} == {("s1", 2)}
    accepted = history.values("accepted")
    assert accepted[2] == (4 if lost_in in ("confirm", "reveal") else 3)
    assert accepted[3] == 4


def test_what_is_lost_before_the_mask_equals_a_round_without_it() -> None:
    """The recovery removes the masks exactly: the sum is that of the survivors, to the bit."""

    def lose(phase: str) -> Scripted:
        def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
            yield absent(name, task) if name == "s1" and task.config["stages"]["phase"] == phase else reply

        return Scripted(script)

    assert bits(fed().run(2, lose("mask"))) == bits(fed().run(2, lose("keys")))


def test_the_server_sees_no_single_update() -> None:
    """What each site sends has no resemblance to its update: it is uniform, whatever the update is."""
    seen: list[np.ndarray[Any, Any]] = []

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        assert isinstance(reply, Update)
        if "frame.00000" in reply.vectors:
            seen.append(reply.vectors["frame.00000"][72:-64].copy())
        assert all(v.dtype == np.uint8 for v in reply.vectors.values())
        yield reply

    big = [NumpyClient(f"s{i}", Quadratic(1.0, 0.3), np.zeros(20_000), lr=0.1, weight=5) for i in range(3)]
    Federation(clients=big, stages=stages("secagg", cap=10, bound=1.0)).run(1, Scripted(script))
    assert len(seen) == 3
    for sent in seen:
        counts = np.bincount(sent, minlength=256)
        expected = sent.size / 256
        assert ((counts - expected) ** 2 / expected).sum() < 400  # chi squared, 255 degrees: above 330 once in 1000
    assert (seen[0] == seen[1]).mean() < 0.02


def test_too_few_survivors_void_the_round() -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        gone = name in ("s1", "s2") and task.config["stages"]["phase"] == "mask"
        yield absent(name, task) if gone else reply

    with pytest.raises(QuorumError, match="round 1"):
        fed().run(1, Scripted(script))


def test_resume(tmp_path: Path) -> None:
    straight = fed(FedAdam()).run(5, Local(), tmp_path / "straight")
    fed(FedAdam()).run(2, Local(), tmp_path / "broken")
    assert bits(fed(FedAdam()).resume(tmp_path / "broken", 5, Local())) == bits(straight)


def test_workers_keep_the_secrets_of_their_sites() -> None:
    assert bits(fed(FedAdam()).run(2, Local(workers=2))) == bits(fed(FedAdam()).run(2, Local()))


def test_two_sites_are_refused() -> None:
    with pytest.raises(IncompatiblePrivacy, match="3 are needed"):
        Federation(clients=clients(2), stages=stages("secagg", cap=100))


def held(folder: Path, site: str) -> Any:
    return load_model(folder / "sites" / site / "model.safetensors")[1]


@pytest.mark.parametrize("strategy", [FedAvg(), Scaffold()], ids=lambda s: type(s).__name__)
def test_masks_inside_the_encryption(tmp_path: Path, strategy: Strategy) -> None:
    """Hybrid: all sites reach one model, and it is that of the same rounds under encryption alone."""
    history = fed(strategy, "hybrid").run(4, Local(), tmp_path / "hybrid")
    fed(strategy, "he").run(4, Local(), tmp_path / "he")
    assert not history.failures
    assert history.model is None
    found = {held(tmp_path / "hybrid", f"s{i}").tobytes() for i in range(4)}
    assert found == {held(tmp_path / "he", "s0").tobytes()}


def test_a_lost_site_under_hybrid(tmp_path: Path) -> None:
    pytest.importorskip("tenseal")

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield absent(name, task) if name == "s1" and task.round == 2 and task.kind == "fit" else reply

    history = fed(None, "hybrid").run(3, Scripted(script), tmp_path)
    assert {(f.client, f.round) for f in history.failures} == {("s1", 2)}
    assert len({held(tmp_path, f"s{i}").tobytes() for i in range(4)}) == 1


def test_one_leaked_job_key_does_not_open_a_single_update(tmp_path: Path) -> None:
    """Whoever has the job key decrypts a site's frames to masked integers, which say nothing."""
    frames: dict[str, list[bytes]] = {}

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        if task.kind == "fit" and isinstance(reply, Update):
            frames[name] = from_vectors("frame", reply.vectors)
        yield reply

    many = np.linspace(0.1, 1, 20_000).astype(np.float32)  # so that chance moves no mean of the slots
    run = fed(None, "hybrid", clients=clients(4, many))
    run.run(1, Scripted(script), tmp_path)
    identity, roster = open_keys(tmp_path / "sites" / "s3" / "keys")
    entry = SumLog(tmp_path / "sums").keys()[1]
    name = json.loads((tmp_path / "run.json").read_text())["run"]
    key = unwrap(entry.pieces[entry.about["names"].index("s3")], identity, roster, name)
    plan = plan_of(FedAvg(), run.clients[0].initial()[0], run.stages, 4)
    server = Accumulator(plan.params, plan.label(name, 1, 0, key.id), roster.verifiers)
    for frame in [*frames["s0"], *frames["s1"]]:
        server.add(frame)
    signer = open_keys(tmp_path / "keys")[0].signer
    holder = KeyHolder(key.params, key.secret)
    pair = open_sum(holder, server.frames(signer), plan.label(name, 1, 0, key.id), roster.server.verifier)
    modulus = plan.params.slots.modulus
    spread = np.asarray(pair.slots, np.float64) / modulus
    assert spread.mean() == pytest.approx(0.5, abs=0.02)  # uniform below the modulus, some 5,000 of them
    assert spread.std() == pytest.approx(12**-0.5, abs=0.02)
    with pytest.raises((FrameRefused, LayoutError)):
        plan.codec(plan.first_grid(many)).decode(pair.slots, expect=2)
