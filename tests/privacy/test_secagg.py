import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.core.errors import ConfigError, LayoutError
from polypfed.privacy import masked
from polypfed.privacy.errors import FrameRefused, IncompatiblePrivacy
from polypfed.privacy.frames import SERVER
from polypfed.privacy.group import Group, pair_seed, private, read_keys
from polypfed.privacy.he import Accumulator, open_sum, seal_update
from polypfed.privacy.keys import JobKey, job_id
from polypfed.privacy.masked import MaskedSum, seal_masked
from polypfed.privacy.masks import Ring
from polypfed.privacy.params import HEParams
from polypfed.privacy.quantise import Codec, Grid
from polypfed.privacy.roster import Identity, Roster
from polypfed.privacy.seal import KeyHolder
from polypfed.privacy.secagg import MaskingSite, Reveal, Unmasking

pytest.importorskip("cryptography.hazmat.primitives.hpke")

NAMES = tuple("abcde")
STEPS = ["keys", "shares", "mask", "confirm", "reveal"]
PEOPLE = {n: Identity.create(n) for n in NAMES}
SERVING = Identity.create("server")
ROSTER = Roster(tuple(p.public for p in PEOPLE.values()), SERVING.public)


def group_of(count: int = 5, threshold: int = 3, modulus: int = 1 << 16, length: int = 40, **more) -> Group:
    fields = {"job": job_id("run"), "round": 2, "attempt": 0, **more}
    return Group(roster=ROSTER, names=NAMES[:count], threshold=threshold, ring=Ring(modulus), length=length, **fields)


def refused(call, reason: str) -> None:
    with pytest.raises(FrameRefused) as caught:
        call()
    assert caught.value.reason == reason


class Attempt:
    """All messages of one attempt; `vanish` says after which step a site is not heard of any more."""

    def __init__(self, group: Group, vanish: dict[str, str] | None = None) -> None:
        self.group, self.vanish = group, vanish or {}
        self.sites = {n: MaskingSite(group, PEOPLE[n]) for n in group.names}
        self.advertised = {n: s.keys() for n, s in self.sites.items() if self.here(n, "keys")}
        self.keys = read_keys(group, self.advertised)
        self.sealed = {n: self.sites[n].shares(self.advertised) for n in self.keys if self.here(n, "shares")}

    def here(self, name: str, step: str) -> bool:
        order = [*STEPS, "never"]
        return order.index(step) < order.index(self.vanish.get(name, "never"))

    def masked(self, name: str, slots: np.ndarray) -> np.ndarray:
        return self.sites[name].mask(slots, {p: s[name] for p, s in self.sealed.items() if p != name})

    def unmasking(self, survivors: list[str]) -> Unmasking:
        confirmed = {n: self.sites[n].confirm(survivors) for n in survivors if self.here(n, "confirm")}
        reveals = [self.sites[n].reveal(confirmed) for n in confirmed if self.here(n, "reveal")]
        reveals = [Reveal.from_json(json.loads(json.dumps(r.to_json()))) for r in reveals]
        return Unmasking.join(self.group, self.keys, reveals, survivors, set(self.sealed) - set(survivors))


def vectors(group: Group, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {n: draw.integers(0, group.ring.modulus, group.length).astype(group.ring.dtype) for n in group.names}


def exact(group: Group, chosen: list[np.ndarray]) -> list[int]:
    return [int(v) % group.ring.modulus for v in sum(c.astype(object) for c in chosen)]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(3, 5),
    st.sampled_from([1 << 16, 1 << 32, (1 << 46) + 15]),
    st.dictionaries(
        st.sampled_from(NAMES), st.sampled_from(["keys", "shares", "mask", "confirm", "reveal"]), max_size=2
    ),
    st.integers(0, 99),
)
def test_the_sum_is_exact_whoever_vanishes_whenever(count, modulus, vanish, seed):
    group = group_of(count, count // 2 + 1, modulus)
    vanish = {n: s for n, s in vanish.items() if n in group.names}
    if count - len(vanish) < 3:
        vanish = dict(list(vanish.items())[: count - 3])
    run, values = Attempt(group, vanish), vectors(group, seed)
    survivors = [n for n in run.sealed if run.here(n, "mask")]
    server = MaskedSum(group, ROSTER.verifiers)
    for name in survivors:
        for frame in seal_masked(run.masked(name, values[name]), group, ROSTER.number(name), PEOPLE[name].signer):
            server.add(frame)
    assert server.participants == survivors
    total = run.unmasking(survivors).remove(server.total)
    assert total.tolist() == exact(group, [values[n] for n in survivors])


def test_what_one_site_sends_is_uniform_and_the_bare_sum_tells_nothing():
    group = group_of(length=50_000)
    run = Attempt(group)
    zero = np.zeros(group.length, np.uint16)
    sent = {n: run.masked(n, zero) for n in NAMES}
    for y in sent.values():
        assert abs(float(y.mean()) / 65535 - 0.5) < 0.01
    assert (np.bitwise_xor.reduce(list(sent.values())) != 0).mean() > 0.99
    assert not run.unmasking(list(NAMES)).remove(sum(sent.values()).astype(np.uint16)).any()


def test_a_late_update_of_a_lost_site_stays_hidden():
    """The server knows all pair masks of "e" after recovery; its own mask still covers what it sent."""
    group = group_of(length=10_000)
    run, values = Attempt(group), vectors(group)
    sent = {n: run.masked(n, values[n]) for n in NAMES}
    survivors = list("abcd")
    known = run.unmasking(survivors)
    assert known.remove(sum(sent[n] for n in survivors)).tolist() == exact(group, [values[n] for n in survivors])
    assert set(known.pair_keys) == {"e"}
    assert set(known.self_masks) == set(survivors)
    bare, own = sent["e"].copy(), private(known.pair_keys["e"])
    for peer in survivors:  # take away everything that the server can compute
        bare += group.ring.mask(pair_seed(group, own, run.keys[peer].mask, "e", peer), group.length)
    assert (bare == values["e"]).mean() < 0.01
    assert (bare - group.ring.mask(run.sites["e"]._self, group.length)).tolist() == values["e"].tolist()


def test_no_site_tells_both_secrets_of_a_peer():
    run, values = Attempt(group_of()), vectors(group_of())
    for n in NAMES:
        run.masked(n, values[n])
    first, second = list("abcd"), list("abce")
    confirmed = {n: run.sites[n].confirm(first) for n in first}
    refused(lambda: run.sites["a"].confirm(second), "share")
    reveal = run.sites["a"].reveal(confirmed)
    assert set(reveal.self_masks) & set(reveal.pair_keys) == set()
    assert (set(reveal.self_masks), set(reveal.pair_keys)) == ({*"abcd"}, {"e"})
    refused(lambda: run.sites["a"].reveal(confirmed), "share")
    refused(lambda: run.sites["e"].reveal(confirmed), "share")


def test_a_server_that_tells_sites_different_lists_gets_nothing():
    run, values = Attempt(group_of()), vectors(group_of())
    for n in NAMES:
        run.masked(n, values[n])
    one = {n: run.sites[n].confirm(list("abcd")) for n in "ab"}
    other = {n: run.sites[n].confirm(list("abce")) for n in "ce"}
    refused(lambda: run.sites["a"].reveal(one), "incomplete")
    refused(lambda: run.sites["a"].reveal({**one, **other}), "signature")


def test_two_shares_of_five_are_too_few():
    run, values = Attempt(group_of(), {"c": "reveal", "d": "reveal", "e": "reveal"}), vectors(group_of())
    for n in NAMES:
        run.masked(n, values[n])
    refused(lambda: run.unmasking(list(NAMES)), "incomplete")


def test_wrong_shares_are_found_and_left_out():
    run, values = Attempt(group_of()), vectors(group_of())
    sent = {n: run.masked(n, values[n]) for n in NAMES}
    confirmed = {n: run.sites[n].confirm(list("abcd")) for n in "abcd"}
    reveals = [run.sites[n].reveal(confirmed) for n in "abcd"]
    liar = replace(reveals[0], self_masks=dict.fromkeys(reveals[0].self_masks, 1), pair_keys={"e": 5})
    fixed = Unmasking.join(run.group, run.keys, [liar, *reveals[1:]], "abcd", "e")
    assert fixed.remove(sum(sent[n] for n in "abcd")).tolist() == exact(run.group, [values[n] for n in "abcd"])
    liar2 = replace(reveals[1], self_masks=dict.fromkeys(reveals[1].self_masks, 2))
    refused(lambda: Unmasking.join(run.group, run.keys, [liar, liar2, *reveals[2:]], "abcd", "e"), "share")
    wrong = Unmasking(run.group, run.keys, {**fixed.self_masks, "a": bytes(32)}, fixed.pair_keys)
    refused(lambda: wrong.remove(sent["a"]), "share")
    wrong = Unmasking(run.group, run.keys, fixed.self_masks, {"e": b"x" * 32})
    refused(lambda: wrong.remove(sent["a"]), "share")


def test_messages_of_another_attempt_site_or_hand_are_refused():
    run, again = Attempt(group_of()), Attempt(group_of(attempt=1))
    for other in (
        group_of(attempt=1),
        group_of(round=3),
        group_of(job=job_id("x")),
        group_of(threshold=4),
        group_of(4),
    ):
        refused(lambda other=other: read_keys(other, {n: run.advertised[n] for n in "abcd"}), "signature")
    refused(lambda: read_keys(run.group, {**run.advertised, "a": run.advertised["b"]}), "signature")
    refused(lambda: read_keys(run.group, {**run.advertised, "z": run.advertised["b"]}), "unknown-site")
    refused(lambda: read_keys(run.group, {**run.advertised, "a": b"short"}), "size")
    refused(lambda: read_keys(run.group, {n: run.advertised[n] for n in "ab"}), "incomplete")
    flipped = bytearray(run.advertised["a"])
    flipped[3] ^= 1
    refused(lambda: read_keys(run.group, {**run.advertised, "a": bytes(flipped)}), "signature")
    slots = vectors(run.group)["a"]
    pieces = {p: s["a"] for p, s in run.sealed.items() if p != "a"}
    swapped = {**pieces, "b": pieces["c"]}
    refused(lambda: run.sites["a"].mask(slots, swapped), "share")
    refused(lambda: run.sites["a"].mask(slots, {p: s["a"] for p, s in again.sealed.items() if p != "a"}), "share")
    refused(lambda: run.sites["a"].mask(slots, {"b": pieces["b"]}), "incomplete")
    refused(lambda: run.sites["a"].shares(run.advertised), "duplicate")
    run.sites["a"].mask(slots, pieces)
    refused(lambda: run.sites["a"].mask(slots, pieces), "duplicate")


def test_a_server_that_swaps_a_sites_own_keys_is_noticed():
    group = group_of()
    sites = {n: MaskingSite(group, PEOPLE[n]) for n in NAMES}
    twin = MaskingSite(group, PEOPLE["a"])  # as if an old message of the same attempt were replayed
    advertised = {**{n: s.keys() for n, s in sites.items()}, "a": twin.keys()}
    refused(lambda: sites["a"].shares(advertised), "share")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"count": 2, "threshold": 2}, "needs 3 to 64"),
        ({"threshold": 2}, "no majority"),
        ({"threshold": 6}, "no majority"),
    ],
)
def test_groups_that_protect_nobody_are_refused(changes, word):
    with pytest.raises(IncompatiblePrivacy, match=word):
        group_of(**changes)
    with pytest.raises(IncompatiblePrivacy, match="needs 3 to 64"):
        replace(group_of(), names=("a", "a", "b"))


def test_slots_that_do_not_fit_are_refused():
    run = Attempt(group_of(modulus=5))
    with pytest.raises(LayoutError):
        run.masked("a", np.full(40, 5, np.uint16))
    with pytest.raises(LayoutError):
        run.masked("a", np.zeros(39, np.uint16))
    with pytest.raises(ConfigError, match="takes no part"):
        MaskingSite(group_of(4), PEOPLE["e"])


def test_masked_frames_are_checked_and_count_once(monkeypatch):
    monkeypatch.setattr(masked, "SLOTS", 16)
    group = group_of()
    run, values = Attempt(group), vectors(group)
    server = MaskedSum(group, ROSTER.verifiers)
    y = run.masked("a", values["a"])
    frames = list(seal_masked(y, group, 0, PEOPLE["a"].signer))
    assert len(frames) == 3
    other = list(seal_masked(y, group_of(attempt=1), 0, PEOPLE["a"].signer))
    refused(lambda: server.add(other[0]), "stale-round")
    refused(lambda: server.add(next(iter(seal_masked(y, group, 1, PEOPLE["a"].signer)))), "signature")
    refused(lambda: server.add(next(iter(seal_masked(y[:9], group, 0, PEOPLE["a"].signer)))), "body")
    assert [server.add(f) for f in frames] == [None, None, 0]
    refused(lambda: server.add(frames[0]), "duplicate")
    assert server.total.tolist() == y.tolist()
    assert server.nbytes == 80


# ------------------------------------------------------------------------------------------------------------ hybrid
def test_masks_inside_encrypted_slots():
    """The key holders get the sum; with the job key and all frames, but without the masks, one update stays hidden."""
    pytest.importorskip("tenseal")
    pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
    params = HEParams.for_sites(5)
    key = JobKey.create("run", params, ROSTER)
    holder = KeyHolder(params, key.secret)
    codec = Codec(params.slots, Grid.flat(1.0, 9000), cap=500)
    group = group_of(modulus=params.slots.modulus, length=codec.size)
    run, draw = Attempt(group), np.random.default_rng(0)
    label = masked.label_of(group)
    label = replace(label, key=key.id, params=params.id)
    deltas = {n: draw.normal(0, 0.2, 9000).astype(np.float32) for n in NAMES}
    slots = {n: codec.encode(deltas[n], 100, draw).slots for n in NAMES}
    server, survivors, single = Accumulator(params, label, ROSTER.verifiers), list("abde"), {}
    for name in NAMES:
        y = run.masked(name, slots[name])
        if name in survivors:
            frames = list(seal_update(holder, y, label, ROSTER.number(name), PEOPLE[name].signer))
            single[name] = y
            for frame in frames:
                server.add(frame)
    found = open_sum(holder, server.frames(SERVING.signer), label, ROSTER.server.verifier)
    known = Unmasking.from_json(group, run.keys, json.loads(json.dumps(run.unmasking(survivors).to_json())))
    result = codec.decode(known.remove(found.slots), expect=4)
    plain = codec.decode(sum(slots[n].astype(np.uint64) for n in survivors), expect=4)
    assert result.mean.tobytes() == plain.mean.tobytes()
    assert result.weight == 400
    only_self = Unmasking(group, run.keys, {"a": known.self_masks["a"]}, {})
    assert (only_self.remove(single["a"]) == slots["a"]).mean() < 0.01
    refused(lambda: Unmasking.from_json(group, run.keys, {"self_masks": {"z": "00" * 32}, "pair_keys": {}}), "share")
    refused(lambda: Unmasking.from_json(group, run.keys, {"self_masks": 3}), "share")
    assert SERVER not in ROSTER.verifiers
    assert list(known.pair_keys) == ["c"]
