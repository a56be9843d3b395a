"""Releases from a draft to a slot, and everything that must not get there."""

import json
import os
import random
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="no tuf: install polypfed[release]")

from polypfed.core.errors import ConfigError
from polypfed.release.bundle import Card, read_bundle
from polypfed.release.errors import ReleaseRefused
from polypfed.release.install import install
from polypfed.release.keys import make_key, open_key
from polypfed.release.slots import TRIALS, Slots
from tests.problems import ROOT
from tests.release.fleet import Fleet, bundle, mutated, version, works


def fails(path: Path, release: object) -> None:
    raise ReleaseRefused("does not work here")


def test_a_bundle_is_read_back_and_every_cut_is_refused() -> None:
    data = bundle(7, metrics={"map50": 0.5})
    found = read_bundle(data)
    assert (found.card.version, found.card.metrics) == (7, {"map50": 0.5})
    assert found.template.manifest.imgsz == 64
    assert bundle(7, metrics={"map50": 0.5}) == data
    draw = random.Random(0)
    for _ in range(200):
        with pytest.raises(ReleaseRefused):
            read_bundle(data[: draw.randrange(len(data))])


def test_a_release_goes_from_a_draft_to_a_slot(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    device = fleet.device()
    assert install(device, fleet.public, works) is None
    fleet.release(1)
    found = install(device, fleet.public, works)
    assert found is not None
    assert found.card == Card(1)
    assert version(device) == 1
    assert install(device, fleet.public, works) is None
    fleet.release(5)
    install(device, fleet.public, works)
    assert version(device) == 5
    assert Slots(device).state.versions == {"b": 1, "a": 5} or Slots(device).state.versions == {"a": 1, "b": 5}


def test_a_draft_is_published_only_with_enough_signatures_of_the_right_people(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, people=3, threshold=2)
    fleet.repository.create(bundle(1), ["all"])
    with pytest.raises(ReleaseRefused, match="lacks signatures"):
        fleet.repository.publish(fleet.own)
    assert fleet.repository.sign(fleet.people["p0"]) == 1
    assert fleet.repository.sign(fleet.people["p0"]) == 1  # twice the same counts once
    with pytest.raises(ReleaseRefused, match="lacks signatures"):
        fleet.repository.publish(fleet.own)
    for stranger in (make_key(tmp_path / "stranger.pem"), fleet.own):
        with pytest.raises(ConfigError, match="not the key of a person"):
            fleet.repository.sign(stranger)
    assert fleet.repository.sign(fleet.people["p2"]) == 0
    fleet.repository.publish(fleet.own)
    device = fleet.device()
    install(device, fleet.public, works)
    assert version(device) == 1


def test_a_draft_that_is_changed_needs_signatures_anew(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.repository.create(bundle(1), ["pilot"])
    fleet.repository.sign(fleet.people["p0"])
    fleet.repository.stage(1, ["all"])
    with pytest.raises(ReleaseRefused, match="lacks signatures"):
        fleet.repository.publish(fleet.own)


def test_a_roll_out_goes_group_by_group(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    pilot, ward = fleet.device("pilot", "pilot"), fleet.device("ward", "ward")
    fleet.release(1)
    fleet.release(2, "pilot")
    for device in (pilot, ward):
        install(device, fleet.public, works)
    assert (version(pilot), version(ward)) == (2, 1)
    fleet.repository.stage(2, ["pilot", "ward"])
    fleet.repository.sign(fleet.people["p0"])
    fleet.repository.publish(fleet.own)
    install(ward, fleet.public, works)
    assert version(ward) == 2


def test_versions_only_grow(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.release(3)
    for old in (3, 2):
        with pytest.raises(ConfigError, match="not above 3"):
            fleet.repository.create(bundle(old), ["all"])


def test_an_older_state_of_the_repository_is_refused(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    device = fleet.device()
    fleet.release(1)
    shutil.copytree(fleet.public, tmp_path / "old")
    fleet.release(2)
    install(device, fleet.public, works)
    with pytest.raises(ReleaseRefused, match=r"(?i)version"):
        install(device, tmp_path / "old", works)
    shutil.rmtree(device / "metadata")  # even a device that has lost what TUF remembers
    assert install(device, tmp_path / "old", works) is None
    assert version(device) == 2


def test_what_is_said_to_be_newest_is_believed_for_so_long_only(tmp_path: Path) -> None:
    """A freeze: the repository is cut off from the device, which is shown what was true a year ago."""
    fleet = Fleet(tmp_path, late=timedelta(days=-365))
    device = fleet.device()
    fleet.release(1)
    with pytest.raises(ReleaseRefused, match=r"(?i)expired"):
        install(device, fleet.public, works)


def test_another_repository_is_refused(tmp_path: Path) -> None:
    fleet, other = Fleet(tmp_path / "a"), Fleet(tmp_path / "b")
    other.release(9)
    with pytest.raises(ReleaseRefused):
        install(fleet.device(), other.public, works)


def test_the_name_of_a_file_leads_nowhere_else(tmp_path: Path) -> None:
    from polypfed.release.install import FromFolder

    (tmp_path / "secret").write_text("x")
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "link").symlink_to(tmp_path / "secret")
    for name in ("../secret", "%2e%2e/secret", "link", "/etc/passwd"):
        with pytest.raises(Exception, match="not there"):
            list(FromFolder(tmp_path / "public").fetch(f"x:{name}"))


def test_no_mutated_release_is_loaded(tmp_path: Path) -> None:
    """Ten thousand: `python benchmarks/fuzz.py releases --count 10000`."""
    outcome = mutated(tmp_path, 150)
    assert sum(outcome.values()) == 150
    assert outcome["refused"] > 100  # else white space, or what nothing depends on


def test_an_update_can_be_killed_at_any_write(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.release.fleet", "sweep", str(tmp_path), "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    points, *problems = json.loads(done.stdout)
    assert int(points.split()[1]) > 10
    assert points.endswith("[1, 2]")
    assert problems == []


def test_what_tuf_has_written_may_be_torn_by_a_power_cut(tmp_path: Path) -> None:
    """It does not sync its files; the counter beside the slots is synced."""
    fleet = Fleet(tmp_path)
    device = fleet.device()
    fleet.release(1)
    install(device, fleet.public, works)
    fleet.release(2)
    for path in sorted(p for p in (device / "metadata").rglob("*") if p.is_file()):
        for size in (0, path.stat().st_size // 2):
            other = tmp_path / "other"
            shutil.rmtree(other, ignore_errors=True)
            shutil.copytree(device, other, symlinks=True)
            (other / path.relative_to(device)).write_bytes(path.read_bytes()[:size])
            install(other, fleet.public, works)
            assert version(other) == 2, path


# ------------------------------------------------------------------------------------------------------- the slots


def test_a_release_that_fails_its_trial_changes_nothing(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    device = fleet.device()
    fleet.release(1)
    install(device, fleet.public, works)
    fleet.release(2)
    with pytest.raises(ReleaseRefused, match="does not work here"):
        install(device, fleet.public, fails)
    assert version(device) == 1
    assert Slots(device).state.counter == 1
    Slots(device).path("a").write_bytes(b"rubbish")
    Slots(device).path("b").write_bytes(b"rubbish")
    with pytest.raises(ReleaseRefused, match="no release works"):
        Slots(device).boot()


def updated(tmp_path: Path) -> Path:
    fleet = Fleet(tmp_path)
    device = fleet.device()
    for number in (1, 2):
        fleet.release(number)
        install(device, fleet.public, works)
        if number == 1:
            Slots(device).confirm()
    return device


def test_one_that_is_never_confirmed_falls_back_by_itself(tmp_path: Path) -> None:
    device = updated(tmp_path)
    assert [version(device) for _ in range(TRIALS + 2)] == [2, 2, 2, 1, 1]
    state = Slots(device).state
    assert (state.refused, state.counter, state.trial) == ([2], 2, False)


def test_one_that_is_confirmed_stays(tmp_path: Path) -> None:
    device = updated(tmp_path)
    version(device)
    Slots(device).confirm()
    assert [version(device) for _ in range(TRIALS + 2)] == [2] * (TRIALS + 2)


def test_a_damaged_slot_falls_back(tmp_path: Path) -> None:
    device = updated(tmp_path)
    path = Slots(device).path(Slots(device).state.current)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert version(device) == 1


def test_a_release_that_never_passed_its_trial_is_no_way_back(tmp_path: Path) -> None:
    """The free slot holds an untried release, and the other one is damaged: nothing boots."""
    device = updated(tmp_path)
    slots = Slots(device)
    slots.put(bundle(3))
    slots.path(slots.state.current).write_bytes(b"")
    with pytest.raises(ReleaseRefused, match="no release works"):
        slots.boot()


def test_keys_are_their_owners_alone(tmp_path: Path) -> None:
    make_key(tmp_path / "k.pem")
    with pytest.raises(ConfigError, match="exists already"):
        make_key(tmp_path / "k.pem")
    (tmp_path / "k.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="read by others"):
        open_key(tmp_path / "k.pem")
    (tmp_path / "x.pem").write_text("nothing")
    (tmp_path / "x.pem").chmod(0o600)
    with pytest.raises(ConfigError, match="no private key"):
        open_key(tmp_path / "x.pem")
