import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.core.errors import ConfigError, MessageError
from polypfed.privacy import keys
from polypfed.privacy.errors import KeyRefused
from polypfed.privacy.keys import JobKey, open_state, rotate, seal_state, unwrap, wrap
from polypfed.privacy.params import HEParams
from polypfed.privacy.roster import Identity, Member, Roster

pytest.importorskip("tenseal")
pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
pytest.importorskip("cryptography.hazmat.primitives.hpke")

PEOPLE = {name: Identity.create(name) for name in ("lyon", "oslo", "wien", "eve")}
SERVER = Identity.create("server")
ROSTER = Roster(tuple(PEOPLE[n].public for n in ("wien", "lyon", "oslo")), SERVER.public)
PARAMS = HEParams.for_sites(3)
KEY = JobKey.create("run-1", PARAMS, ROSTER)
WRAPPED = wrap(KEY, ROSTER, PEOPLE["oslo"])


@pytest.mark.parametrize("name", ["lyon", "oslo", "wien"])
def test_every_member_gets_the_same_key(name):
    assert unwrap(WRAPPED[name], PEOPLE[name], ROSTER, "run-1") == KEY
    assert KEY.secret[:16] not in WRAPPED[name]


def test_nobody_else_opens_it():
    with pytest.raises(KeyRefused, match="not made for this site"):
        unwrap(WRAPPED["lyon"], PEOPLE["wien"], ROSTER, "run-1")
    with pytest.raises(KeyRefused, match="not made for this site"):
        unwrap(WRAPPED["lyon"], PEOPLE["lyon"], ROSTER, "run-2")
    with pytest.raises(KeyRefused, match="not made for this site"):
        unwrap(WRAPPED["lyon"], SERVER, ROSTER, "run-1")
    eve = Roster((*ROSTER.members, PEOPLE["eve"].public), SERVER.public)  # the server slips in a key of its own
    with pytest.raises(KeyRefused, match="fingerprints"):
        unwrap(WRAPPED["lyon"], PEOPLE["lyon"], eve, "run-1")


def test_a_key_that_no_member_signed_is_refused():
    spoofed = Identity("oslo", PEOPLE["eve"]._signing, PEOPLE["eve"]._transport)
    with pytest.raises(KeyRefused, match="another one"):
        wrap(KEY, ROSTER, spoofed)
    other = Roster((PEOPLE["lyon"].public, spoofed.public, PEOPLE["wien"].public), SERVER.public)
    with pytest.raises(KeyRefused):
        unwrap(wrap(KEY, other, spoofed)["lyon"], PEOPLE["lyon"], ROSTER, "run-1")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_flipped_bit_and_any_cut_is_refused(data):
    piece = bytearray(WRAPPED["wien"])
    bit = data.draw(st.integers(0, 8 * len(piece) - 1) | st.integers(0, 8 * 40))
    piece[bit // 8] ^= 1 << bit % 8
    with pytest.raises(KeyRefused):
        unwrap(bytes(piece), PEOPLE["wien"], ROSTER, "run-1")
    with pytest.raises(KeyRefused):
        unwrap(WRAPPED["wien"][: data.draw(st.integers(0, len(piece) - 1))], PEOPLE["wien"], ROSTER, "run-1")


def test_rotation_makes_a_new_key_for_those_who_remain():
    smaller = ROSTER.without(["oslo"])
    assert keys.members_changed(KEY, smaller.names)
    new = rotate(KEY, "run-1", smaller)
    assert (new.epoch, new.members) == (2, ("lyon", "wien"))
    assert new.id != KEY.id
    assert new.secret != KEY.secret
    pieces = wrap(new, smaller, PEOPLE["lyon"])
    assert unwrap(pieces["wien"], PEOPLE["wien"], smaller, "run-1", after=1) == new
    with pytest.raises(KeyRefused, match="epoch 1, 1 is known"):
        unwrap(WRAPPED["wien"], PEOPLE["wien"], ROSTER, "run-1", after=1)
    with pytest.raises(KeyRefused, match="another run"):
        rotate(KEY, "run-2", smaller)
    with pytest.raises(KeyRefused, match="Rotate"):
        wrap(KEY, smaller, PEOPLE["lyon"])


def test_more_members_than_the_parameters_admit_are_refused():
    four = Roster((*ROSTER.members, PEOPLE["eve"].public), SERVER.public)
    with pytest.raises(ConfigError, match="4 members, the parameters admit 3"):
        rotate(KEY, "run-1", four)
    assert rotate(KEY, "run-1", four, HEParams.for_sites(4)).params.sites == 4


def test_files_are_private_whole_and_checked(tmp_path):
    for thing, load in ((KEY, JobKey.load), (PEOPLE["lyon"], Identity.load)):
        path = tmp_path / "a" / "key"
        thing.save(path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert load(path) == thing
        assert [p.name for p in path.parent.iterdir()] == ["key"]
        path.chmod(0o640)
        with pytest.raises(KeyRefused, match="chmod 600"):
            load(path)
        path.chmod(0o600)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(KeyRefused, match="damaged"):
            load(path)
    with pytest.raises(KeyRefused, match="No such file"):
        JobKey.load(tmp_path / "none")
    KEY.save(path)
    with pytest.raises(KeyRefused, match="not 'polypfed identity 1'"):
        Identity.load(path)


def test_what_is_shown_is_no_secret(tmp_path):
    KEY.save(tmp_path / "key")
    shown = keys.inspect(tmp_path / "key")
    text = json.dumps(shown) + repr(KEY) + repr(PEOPLE["lyon"]) + str(PEOPLE["lyon"])
    assert shown["members"] == ["lyon", "oslo", "wien"]
    assert shown["id"] == KEY.id.hex()
    for secret in (KEY.secret, KEY.seal, PEOPLE["lyon"]._signing, PEOPLE["lyon"]._transport):
        assert secret[:8].hex() not in text
        assert repr(secret)[2:10] not in text


def test_rosters_are_ordered_compared_and_strict():
    again = Roster.from_json(json.loads(json.dumps(ROSTER.to_json())))
    assert again == ROSTER
    assert again.digest == ROSTER.digest
    assert ROSTER.names == ["lyon", "oslo", "wien"]
    assert ROSTER.number("wien") == 2
    assert set(ROSTER.verifiers) == {0, 1, 2}
    assert keys.leader(ROSTER, "run-1") in ROSTER.names
    assert len({keys.leader(ROSTER, f"run-{i}") for i in range(30)}) == 3
    assert len(PEOPLE["lyon"].public.fingerprint.split()) == 8
    with pytest.raises(KeyRefused, match="not in the roster"):
        ROSTER.number("rome")
    with pytest.raises(ConfigError, match="share a key"):
        Roster((PEOPLE["lyon"].public, Member("rome", PEOPLE["lyon"].public.signing, b"x" * 32)), SERVER.public)
    for bad in ({}, {"members": 3, "server": 4}, {"members": [{"name": "x"}], "server": {}}):
        with pytest.raises(KeyRefused, match="no roster"):
            Roster.from_json(bad)


def test_a_sealed_state_opens_for_its_job_key_and_round_only():
    sealed = seal_state(KEY, 7, b"model and moments")
    assert b"model" not in sealed
    assert open_state(KEY, 7, sealed) == b"model and moments"
    for key, number, data in (
        (KEY, 8, sealed),
        (rotate(KEY, "run-1", ROSTER), 7, sealed),
        (KEY, 7, sealed[:-1]),
        (KEY, 7, b""),
    ):
        with pytest.raises(MessageError, match="sealed state"):
            open_state(key, number, data)
