import copy
import multiprocessing
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.privacy import he, seal
from polypfed.privacy.errors import FrameRefused, KeyRefused
from polypfed.privacy.frames import OVERHEAD, SERVER, Frame, Label, Mac, read
from polypfed.privacy.he import Accumulator, open_sum, seal_update
from polypfed.privacy.params import HEParams
from polypfed.privacy.seal import KeyHolder, Scheme

pytest.importorskip("tenseal")
pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
pytest.importorskip("cryptography.hazmat.primitives.hpke")


@dataclass
class Job:
    """Sites with keys of their own, a server with one, and a job key that the server does not see."""

    params: HEParams
    length: int

    def __post_init__(self) -> None:
        self.secret = KeyHolder.new_secret(self.params)
        self.holder = KeyHolder(self.params, self.secret)
        self.signers = [Ed25519PrivateKey.generate() for _ in range(self.params.sites + 1)]
        self.server = Ed25519PrivateKey.generate()
        self.verifiers = {i: s.public_key() for i, s in enumerate(self.signers)}
        self.label = Label(b"j" * 16, 3, 0, b"k" * 8, self.params.id, self.length)

    def accumulator(self, **more) -> Accumulator:
        return Accumulator(self.params, self.label, self.verifiers, **more)

    def update(self, site: int, slots: np.ndarray) -> list[bytes]:
        return list(seal_update(self.holder, slots, self.label, site, self.signers[site]))

    def reseal(self, data: bytes, signer=None, **changes) -> bytes:
        """The same frame with other fields, properly signed."""
        frame = read(data, {**self.verifiers, SERVER: self.server.public_key()})
        own = self.server if frame.site == SERVER else self.signers[frame.site]
        inside = {k: v for k, v in changes.items() if k in Label.__dataclass_fields__}
        outside = {k: v for k, v in changes.items() if k in Frame.__dataclass_fields__}
        return replace(frame, label=replace(frame.label, **inside), **outside).seal(signer or own)

    def open(self, frames, **more):
        return open_sum(self.holder, frames, self.label, self.server.public_key(), **more)


@pytest.fixture(scope="module")
def job() -> Job:
    return Job(HEParams.for_sites(3, lanes=4), 2048 + 100)


@pytest.fixture
def frames_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of one ciphertext, so that small vectors have many."""
    monkeypatch.setattr(he, "CIPHERTEXTS", 1)


def packed(params: HEParams, values: int, seed: int | None) -> np.ndarray:
    """Slots with random levels, or all at their maximum."""
    most = params.slots.levels
    levels = np.full(values, most) if seed is None else np.random.default_rng(seed).integers(0, most + 1, values)
    return params.slots.pack(levels.astype(np.uint32))


CELLS = [("std", 2, 3), ("std", 2, 4), ("std", 3, 5), ("std", 8, 4), ("pq128", 8, 4), ("tc256", 2, 3), ("tc256", 8, 4)]


@pytest.mark.parametrize(("profile", "sites", "lanes"), [*CELLS, ("std", 128, 3), ("tc256", 64, 4)])
def test_sums_are_exact_up_to_the_admitted_number_of_sites(profile, sites, lanes):
    params = HEParams(profile, sites, lanes)
    values = params.degree * lanes + 17
    job = Job(params, params.slots.count(values))
    server, exact = job.accumulator(), np.zeros(job.length, object)
    for site in range(sites):
        slots = packed(params, values, None if site % 2 == 0 or sites <= 8 else site)
        exact += slots.astype(object)
        assert [server.add(f) for f in job.update(site, slots)][-1] == site
    assert int(exact.max()) < params.slots.modulus
    found = job.open(server.frames(job.server))
    assert found.participants == tuple(range(sites))
    assert found.slots.tolist() == exact.tolist()
    assert int(params.slots.unpack(found.slots, values).max()) <= sites * params.slots.levels
    with pytest.raises(FrameRefused) as caught:
        server.add(job.update(sites, slots)[0])
    assert caught.value.reason == "too-many-sites"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5000), st.lists(st.integers(0, 9) | st.none(), min_size=3, max_size=3))
def test_any_sum_is_exact_in_any_order(job, sites, values, seeds):
    job = replace_length(job, job.params.slots.count(values))
    made = [packed(job.params, values, seed) for seed in seeds[:sites]]
    results = []
    for order in (range(sites), reversed(range(sites))):
        server = job.accumulator()
        for site in order:
            for frame in job.update(site, made[site]):
                server.add(frame)
        results.append(job.open(server.frames(job.server), minimum=1).slots)
    np.testing.assert_array_equal(results[0], sum(m.astype(np.uint64) for m in made))
    np.testing.assert_array_equal(results[0], results[1])


def replace_length(job: Job, length: int) -> Job:
    other = copy.copy(job)
    other.length, other.label = length, replace(job.label, length=length)
    return other


def test_both_layouts_decrypt_to_the_same_and_c0_is_what_seal_itself_adds(job):
    server, made = job.accumulator(), [packed(job.params, 8192, s) for s in range(3)]
    job = replace_length(job, 2048)
    server = job.accumulator()
    for site, slots in enumerate(made):
        for frame in job.update(site, slots):
            server.add(frame)
    relay, whole = (list(server.frames(job.server, scheme)) for scheme in (None, Scheme(job.params)))
    np.testing.assert_array_equal(job.open(relay).slots, job.open(whole).slots)
    assert len(relay[1]) < 0.52 * len(whole[1]) * 1.02
    scheme = Scheme(job.params)
    api, updates = scheme.api, [job.holder.encrypt(m) for m in made]
    total = scheme.load(updates[0].c0[0], updates[0].seeds[0][0].tobytes())
    for update in updates[1:]:
        api.Evaluator(scheme.context).add_inplace(total, scheme.load(update.c0[0], update.seeds[0][0].tobytes()))
    total.save(scheme.channel.write())
    by_seal, _ = scheme.parse(scheme.channel.read())
    ours = sum(u.c0[0].astype(object) for u in updates) % job.params.prime
    assert by_seal.tolist() == ours.tolist()


def test_an_upload_has_the_promised_size(job):
    slots = packed(job.params, 64 * 2048 * 4, 0)
    own = replace_length(job, slots.size)
    (frame,) = own.update(0, slots)
    assert len(frame) == 64 * (2048 * 54 // 8 + 64) + OVERHEAD
    assert len(frame) < 0.43 * 4 * 64 * 2048 * 4


def test_memory_of_the_server_does_not_grow_with_the_sites(tmp_path):
    params = HEParams.for_sites(8)
    values = 64 * 2048 * 4
    job, used = Job(params, values // 4), []
    server = job.accumulator(spool=tmp_path)
    update = packed(params, values, 0)
    for site in range(8):
        for frame in job.update(site, update):
            server.add(frame)
        used.append(server.nbytes / values)
    assert max(used) < 2.1
    assert used[-1] - used[0] < 0.06
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- what is refused
def refused(call, reason: str) -> None:
    with pytest.raises(FrameRefused) as caught:
        call()
    assert caught.value.reason == reason


@pytest.mark.usefixtures("frames_of_one")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"job": b"x" * 16}, "wrong-job"),
        ({"round": 2}, "stale-round"),
        ({"attempt": 1}, "stale-round"),
        ({"key": b"x" * 8}, "wrong-key"),
        ({"params": b"x" * 8}, "wrong-parameters"),
        ({"length": 7}, "wrong-parameters"),
        ({"kind": "sum"}, "header"),
        ({"sites": 2}, "header"),
        ({"count": 3}, "frames"),
        ({"index": 2}, "frames"),
        ({"full": True}, "body"),
        ({"body": b""}, "body"),
        ({"body": b"\xff" * (2048 * 54 // 8 + 65)}, "body"),
    ],
    ids=str,
)
def test_a_frame_that_does_not_belong_is_refused_though_well_signed(job, changes, reason):
    server = job.accumulator()
    first, second = job.update(0, packed(job.params, 4 * job.length, 1))
    refused(lambda: server.add(job.reseal(first, **changes)), reason)
    assert server.nbytes == job.accumulator().nbytes
    assert (server.add(first), server.add(second)) == (None, 0)  # the refusal left no trace


@pytest.mark.usefixtures("frames_of_one")
def test_replays_duplicates_strangers_and_forgeries_are_refused(job):
    server = job.accumulator()
    first, second = job.update(0, packed(job.params, 4 * job.length, 1))
    server.add(first)
    refused(lambda: server.add(first), "duplicate")
    server.add(second)
    refused(lambda: server.add(first), "duplicate")
    refused(lambda: server.add(second), "duplicate")
    refused(lambda: server.add(job.reseal(first, site=1, signer=job.signers[0])), "signature")
    refused(lambda: server.add(job.reseal(first, site=99)), "unknown-site")
    refused(lambda: server.add(first[:50]), "size")
    refused(lambda: server.add(first[:-1]), "size")
    refused(lambda: server.add(first + b"x"), "size")
    refused(lambda: server.add(b"NOPE" + first[4:]), "header")
    assert server.participants == [0]


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_a_flipped_bit_anywhere_is_refused(job, data):
    own = replace_length(job, 10)
    (frame,) = own.update(0, packed(job.params, 40, 1))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1) | st.integers(0, 8 * 72 - 1))
    broken = bytearray(frame)
    broken[bit // 8] ^= 1 << bit % 8
    server = own.accumulator()
    with pytest.raises(FrameRefused):
        server.add(bytes(broken))
    assert server.nbytes == own.accumulator().nbytes


@pytest.mark.usefixtures("frames_of_one")
def test_a_site_that_stops_half_way_leaves_no_trace(job, tmp_path):
    server = job.accumulator(spool=tmp_path)
    one, two = (packed(job.params, 4 * job.length, s) for s in (1, 2))
    server.add(job.update(0, one)[0])
    assert list(tmp_path.iterdir())
    for site, slots in ((1, one), (2, two)):
        for frame in job.update(site, slots):
            server.add(frame)
    server.drop(0)
    assert not list(tmp_path.iterdir())
    assert job.open(server.frames(job.server)).slots.tolist() == (one + two).tolist()
    assert [server.add(f) for f in job.update(0, one)] == [None, 0]  # a new upload may come later


@pytest.mark.usefixtures("frames_of_one")
def test_a_sum_is_checked_before_it_is_decrypted(job):
    server = job.accumulator()
    refused(lambda: list(server.frames(job.server)), "incomplete")
    for site in (0, 1):
        for frame in job.update(site, packed(job.params, 4 * job.length, site)):
            server.add(frame)
    frames = list(server.frames(job.server))
    assert len(frames) == 3
    refused(lambda: job.open(frames[:-1]), "frames")
    refused(lambda: job.open(frames[1:]), "frames")
    refused(lambda: job.open([frames[0], frames[2], frames[1]]), "frames")
    refused(lambda: job.open([*frames, frames[-1]]), "frames")
    refused(lambda: job.open(frames, minimum=3), "count")
    refused(lambda: job.open([frames[0], frames[1][:-1], frames[2]]), "size")
    refused(lambda: job.open([job.reseal(f, job=b"x" * 16) for f in frames]), "wrong-job")
    refused(lambda: job.open([job.reseal(f, round=2) for f in frames]), "stale-round")
    refused(lambda: job.open([job.reseal(f, key=b"x" * 8) for f in frames]), "wrong-key")
    refused(lambda: job.open([job.reseal(f, sites=3) for f in frames]), "body")
    refused(lambda: job.open(job.update(0, packed(job.params, 4 * job.length, 0))), "unknown-site")
    forged = Ed25519PrivateKey.generate()
    refused(lambda: job.open([job.reseal(f, signer=forged) for f in frames]), "signature")


def test_another_key_gives_nothing_and_is_named_before_it_is_tried(job):
    server = job.accumulator()
    for site in (0, 1):
        for frame in job.update(site, packed(job.params, 4 * job.length, None)):
            server.add(frame)
    stranger = KeyHolder(job.params, KeyHolder.new_secret(job.params))
    found = open_sum(stranger, server.frames(job.server), job.label, job.server.public_key())
    assert np.mean(found.slots == 2 * packed(job.params, 4 * job.length, None)[0]) < 0.01
    for bad in (b"", job.secret[:-1], bytes([255]) * len(job.secret)):
        with pytest.raises(KeyRefused):
            KeyHolder(job.params, bad)


def test_a_shared_mac_serves_as_well_as_a_signature(job):
    own = replace_length(job, 10)
    mac = Mac(b"s" * 32)
    server = Accumulator(job.params, own.label, {0: mac, 1: mac})
    for site in (0, 1):
        for frame in seal_update(job.holder, packed(job.params, 40, site), own.label, site, mac):
            server.add(frame)
    assert open_sum(job.holder, server.frames(mac), own.label, mac).participants == (0, 1)
    refused(lambda: open_sum(job.holder, server.frames(mac), own.label, Mac(b"t" * 32)), "signature")


# ----------------------------------------------------------------------------------------------- what the server has
def test_nothing_that_reaches_the_server_holds_the_key_or_the_values(job, tmp_path):
    slots = packed(job.params, 4 * job.length, 5)
    server = job.accumulator(spool=tmp_path)
    frames = job.update(0, slots) + job.update(1, slots)
    seen = b"".join(frames)
    for frame in frames:
        server.add(frame)
    seen += b"".join(server.frames(job.server)) + b"".join(f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
    seen += server._c0.tobytes()
    for offset in range(0, 8 * 2048, 1024):
        assert job.secret[offset : offset + 16] not in seen
    for i in range(0, slots.size - 2, 97):
        assert slots[i : i + 2].tobytes() not in seen


def test_equal_values_never_look_alike(job):
    one, two = (job.holder.encrypt(np.zeros(2048, np.uint64)) for _ in range(2))
    assert (one.c0 != two.c0).mean() > 0.99
    assert (one.seeds[0] != two.seeds[0]).any()


# -------------------------------------------------------------------------------------------------------- fall-backs
def test_without_the_seeded_class_whole_ciphertexts_travel_and_sums_mix(job, monkeypatch):
    slots = [packed(job.params, 4 * job.length, s) for s in range(3)]
    plain = KeyHolder(job.params, job.secret)
    plain.scheme.__dict__["seeded"] = False
    server = job.accumulator()
    for site, holder in enumerate((job.holder, plain, plain)):
        frames = list(seal_update(holder, slots[site], job.label, site, job.signers[site]))
        assert read(frames[0], job.verifiers).full is (holder is plain)
        for frame in frames:
            server.add(frame)
    for scheme in (None, Scheme(job.params)):
        assert job.open(server.frames(job.server, scheme)).slots.tolist() == sum(slots).tolist()


@pytest.mark.parametrize("level", ["shm", "file"])
def test_without_memory_files_private_ones_do_and_none_is_left(job, level, monkeypatch, tmp_path):
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    if level == "file":
        real = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: path != "/dev/shm" and real(path, mode))
    holder = KeyHolder(job.params, job.secret)
    path = Path(holder.scheme.channel.path)
    assert holder.scheme.channel.level == level
    assert path.stat().st_mode & 0o777 == 0o600
    slots = packed(job.params, 8192, 3)
    np.testing.assert_array_equal(job.holder.decrypt(holder.encrypt(slots)), slots)
    holder.scheme.channel.write()
    del holder
    assert not path.exists()


def test_a_forked_child_has_a_channel_and_randomness_of_its_own(job):
    def work(pipe) -> None:
        pipe.send_bytes(job.holder.encrypt(np.zeros(2048, np.uint64)).c0.tobytes())
        pipe.send_bytes(str(os.fstat(job.holder.scheme.channel._fd).st_ino).encode())

    context, found = multiprocessing.get_context("fork"), []
    for _ in range(2):
        ours, theirs = context.Pipe()
        child = context.Process(target=work, args=(theirs,))
        child.start()
        found.append((ours.recv_bytes(), ours.recv_bytes()))
        child.join()
    assert found[0][0] != found[1][0]
    mine = str(os.fstat(job.holder.scheme.channel._fd).st_ino).encode()
    assert mine not in (found[0][1], found[1][1])


def test_an_unknown_layout_of_seal_is_said_plainly(job):
    with pytest.raises(ValueError, match="no known layout"):
        job.holder.scheme.parse(seal._HEADER.pack(0xA15E, 16, 4, 3, 0, 0, 20) + b"abcd")
    with pytest.raises(ValueError, match="compression 9"):
        seal.body_of(seal._HEADER.pack(0xA15E, 16, 4, 3, 9, 0, 16))


def test_what_this_machine_can_do_is_said():
    assert seal.capability() == {"uploads": "seeded", "channel": "memfd", "self-test": "passed"}
