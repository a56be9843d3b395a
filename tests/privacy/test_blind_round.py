"""All blocks together: a federation whose server never holds a weight, against the same run without encryption."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from polypfed.core.errors import CheckpointError
from polypfed.privacy.frames import Label, joined, split
from polypfed.privacy.he import Accumulator, open_sum, seal_update
from polypfed.privacy.keys import JobKey, job_id, leader, open_state, seal_state, unwrap, wrap
from polypfed.privacy.params import HEParams
from polypfed.privacy.quantise import Codec, Decoded, Grid
from polypfed.privacy.roster import Identity, Roster
from polypfed.privacy.seal import KeyHolder
from polypfed.privacy.sumlog import SumLog

pytest.importorskip("tenseal")
pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
pytest.importorskip("cryptography.hazmat.primitives.hpke")

NAMES = ("lyon", "oslo", "wien")
PEOPLE = {n: Identity.create(n) for n in NAMES}
SERVER = Identity.create("server")
ROSTER = Roster(tuple(p.public for p in PEOPLE.values()), SERVER.public)
LENGTH, ROUNDS, WEIGHTS = 9000, 6, {"lyon": 120, "oslo": 80, "wien": 300}
TARGETS = {n: np.random.default_rng(i).normal(0, 0.1, LENGTH).astype(np.float32) for i, n in enumerate(NAMES)}
CODEC = Codec(HEParams.for_sites(3).slots, Grid.flat(0.3, LENGTH), cap=300)


class Momentum:
    """A pure step with state, in float32 and fixed order: x <- x + v, v <- 0.5 v + mean."""

    def __init__(self) -> None:
        self.round, self.grid = 0, CODEC.grid
        self.x, self.v = np.zeros(LENGTH, np.float32), np.zeros(LENGTH, np.float32)

    def step(self, result: Decoded) -> None:
        self.v = np.float32(0.5) * self.v + result.mean
        self.x = self.x + self.v
        self.grid = self.grid.following(result.peaks)
        self.round += 1

    def state(self) -> bytes:
        return np.concatenate([self.x, self.v, np.float32([self.grid.bounds[0]])]).tobytes()

    def restore(self, round: int, data: bytes) -> None:
        values = np.frombuffer(data, np.float32)
        self.round, self.x, self.v = round, values[:LENGTH], values[LENGTH:-1]
        self.grid = Grid.flat(float(values[-1]), LENGTH)


class Site(Momentum):
    def __init__(self, name: str, key: JobKey) -> None:
        super().__init__()
        self.name, self.key, self.holder = name, key, KeyHolder(key.params, key.secret)
        self.residual = np.zeros(LENGTH, np.float32)

    def slots(self) -> np.ndarray:
        delta = np.float32(0.4) * (TARGETS[self.name] - self.x)
        draw = np.random.default_rng([self.round, NAMES.index(self.name)])
        out = replace(CODEC, grid=self.grid).encode(delta, WEIGHTS[self.name], draw, self.residual)
        self.residual = out.residual
        return out.slots

    def label(self, round: int) -> Label:
        return Label(self.key.job, round, 0, self.key.id, self.key.params.id, CODEC.size)

    def upload(self) -> np.ndarray:
        number = ROSTER.number(self.name)
        return joined(
            seal_update(self.holder, self.slots(), self.label(self.round + 1), number, PEOPLE[self.name].signer)
        )

    def receive(self, round: int, data: np.ndarray) -> None:
        found = open_sum(self.holder, split(data), self.label(round), ROSTER.server.verifier)
        self.step(replace(CODEC, grid=self.grid).decode(found.slots, expect=len(found.participants)))


def test_every_key_holder_gets_the_bits_of_the_run_without_encryption(tmp_path):
    elected = leader(ROSTER, "run")
    made = JobKey.create("run", HEParams.for_sites(3), ROSTER)
    wrapped = wrap(made, ROSTER, PEOPLE[elected])
    sites = {n: Site(n, unwrap(wrapped[n], PEOPLE[n], ROSTER, "run")) for n in NAMES}
    twins, plain, exact = {n: Site(n, made) for n in NAMES}, Momentum(), Momentum()
    log = SumLog(tmp_path / "server", keep=1)
    seen = [b"".join(wrapped.values())]
    for number in range(1, ROUNDS + 1):
        working = [n for n in NAMES if not (n == "wien" and number in (3, 4))]
        label = Label(job_id("run"), number, 0, made.id, made.params.id, CODEC.size)
        server = Accumulator(made.params, label, ROSTER.verifiers)
        total = np.zeros(CODEC.size, np.uint64)
        for name in working:
            upload = sites[name].upload()
            seen.append(upload.tobytes())
            for frame in split(upload):
                server.add(frame)
            twins[name].round, twins[name].grid, twins[name].x = plain.round, plain.grid, plain.x
            total += twins[name].slots().astype(np.uint64)
        frames = list(server.frames(SERVER.signer))
        log.add(number, frames)
        for name in working:
            sites[name].receive(number, joined(frames))
        plain.step(replace(CODEC, grid=plain.grid).decode(total, expect=len(working)))
        deltas = [np.float32(0.4) * (TARGETS[n] - exact.x) for n in working]
        mean = np.average(deltas, axis=0, weights=[WEIGHTS[n] for n in working]).astype(np.float32)
        exact.step(Decoded(mean, 0, len(working), (0.0,)))
        if number == 4:
            log.snapshot(4, seal_state(made, 4, sites["lyon"].state()))
            assert log.rounds() == [4]
            missed = log.missed(sites["wien"].round)
            assert (missed.round, missed.sums) == (4, ())
            sites["wien"].restore(4, open_state(made, 4, missed.snapshot))
        for site in sites.values():
            if site.round == number:
                assert site.x.tobytes() == plain.x.tobytes()
                assert site.grid == plain.grid
    assert {s.round for s in sites.values()} == {ROUNDS}
    assert np.linalg.norm(plain.x - exact.x) < 0.01 * np.linalg.norm(exact.x)
    held = b"".join(seen) + b"".join(p.read_bytes() for p in (tmp_path / "server").iterdir())
    for secret in (made.secret, made.seal, plain.x.tobytes(), plain.v.tobytes(), TARGETS["lyon"].tobytes()):
        for start in range(0, len(secret) - 12, 997):
            assert secret[start : start + 12] not in held


def test_the_log_fills_gaps_by_sums_or_by_a_snapshot(tmp_path):
    log = SumLog(tmp_path, keep=2)
    assert log.missed(0) == log.missed(0).__class__(0, None, ())
    for number in range(1, 7):
        log.add(number, [bytes([number])])
    assert [r for r, _ in log.missed(2).sums] == [3, 4, 5, 6]
    assert log.wants_snapshot()
    log.snapshot(3, b"sealed")
    assert log.rounds() == [4, 5, 6]
    assert not log.wants_snapshot()
    late = log.missed(1)
    assert (late.round, late.snapshot, [r for r, _ in late.sums]) == (3, b"sealed", [4, 5, 6])
    assert log.missed(4).snapshot is None
    assert late.sums[0][1].tolist() == [4]
    with pytest.raises(CheckpointError, match="does not follow"):
        log.add(9, [])
    with pytest.raises(CheckpointError, match="the site is at 7"):
        log.missed(7)
    (tmp_path / "snapshot-000003.bin").unlink()
    with pytest.raises(CheckpointError, match="begins with round 4"):
        log.missed(1)
    path = tmp_path / "sum-000006.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        log.missed(5)
