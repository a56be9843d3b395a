"""A repository with releases, devices, and ways to spoil both; also a process that is killed while it installs.

python -m tests.release.fleet sweep FOLDER STRIDE
"""

import json
import os
import random
import shutil
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from polypfed.core.model import ModelSpec
from polypfed.detect.template import Template
from polypfed.release.bundle import Card, Release, write_bundle
from polypfed.release.errors import ReleaseRefused
from polypfed.release.install import install, prepare
from polypfed.release.keys import make_key
from polypfed.release.repository import Repository
from polypfed.release.slots import Slots
from tests.detect.random_arrays import random_arrays
from tests.killable import die_at

TEMPLATE = Path(__file__).parents[1] / "detect" / "mini-64.zip"


def bundle(version: int, seed: int = 0, **card: object) -> bytes:
    data = TEMPLATE.read_bytes()
    arrays = random_arrays(Template(data), seed)
    spec = ModelSpec.of(arrays)
    return write_bundle(Card(version, **card), spec, spec.pack(arrays), data)  # type: ignore[arg-type]


class Fleet:
    """A repository with one release for everybody, and what is needed for more."""

    def __init__(self, folder: Path, people: int = 1, threshold: int = 1, late: timedelta = timedelta()) -> None:
        self.folder = folder
        self.repository = Repository(folder / "repo", lambda: datetime.now(UTC) + late)
        self.people = {f"p{i}": make_key(folder / "keys" / f"p{i}.pem") for i in range(people)}
        self.own = make_key(folder / "keys" / "own.pem")
        self.root = self.repository.init(self.people, self.own, threshold).read_bytes()
        self.public = folder / "repo" / "public"

    def release(self, version: int, *groups: str, **card: object) -> None:
        self.repository.create(bundle(version, seed=version, **card), groups or ("all",))
        for key in self.people.values():
            self.repository.sign(key)
        self.repository.publish(self.own)

    def device(self, name: str = "device", group: str = "all") -> Path:
        place = self.folder / name
        prepare(place, self.root, group)
        return place


def works(path: Path, release: Release) -> None:
    """A trial that is passed."""


def version(device: Path) -> int:
    return Slots(device).boot().card.version


def spoiled(public: Path, into: Path, draw: random.Random) -> None:
    """A copy of what is published, one file of it changed, cut, swapped, or gone."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(public, into)
    files = sorted(p for p in into.rglob("*") if p.is_file())
    read = [max(into.rglob(f"*{kind}*"), key=lambda p: p.name) for kind in ("timestamp", ".snapshot", ".targets")]
    path = draw.choice([*read, next(into.rglob("*release-000002*"))])
    data, kind = bytearray(path.read_bytes()), draw.randrange(6)
    if kind < 3:
        for _ in range(draw.choice((1, 1, 3))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == 3:
        del data[draw.randrange(len(data)) :]
    elif kind == 4:
        at = draw.randrange(len(data))
        data[at:at] = draw.randbytes(draw.randrange(1, 9))
    else:
        data = bytearray(draw.choice(files).read_bytes())
    path.write_bytes(data)


def mutated(folder: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Offer `count` spoiled copies of a second release to a device that runs the first.

    Raises:
        AssertionError: another release than the two authentic ones was loaded, or another error raised.
    """
    fleet, draw = Fleet(folder), random.Random(seed)
    fleet.release(1)
    device = fleet.device()
    install(device, fleet.public, works)
    fleet.release(2)
    authentic, outcome = bundle(2, seed=2), {"refused": 0, "nothing newer": 0, "authentic": 0}
    kept = folder / "kept"
    shutil.copytree(device, kept, symlinks=True)
    for _ in range(count):
        spoiled(fleet.public, folder / "spoiled", draw)
        try:
            found = install(device, folder / "spoiled", works)
        except ReleaseRefused:
            outcome["refused"] += 1
        else:
            outcome["authentic" if found else "nothing newer"] += 1
            if found:
                assert Slots(device).path(Slots(device).state.current).read_bytes() == authentic
        shutil.rmtree(device)
        shutil.copytree(kept, device, symlinks=True)
    return outcome


def sweep(folder: Path, first: int, stride: int) -> list[str]:
    """Kill an update at every stride-th write; the device must boot one of the two releases, and then update."""
    fleet = Fleet(folder)
    fleet.release(1)
    fleet.device("kept")
    install(folder / "kept", fleet.public, works)
    Slots(folder / "kept").confirm()
    fleet.release(2)
    problems, count, killed, seen = list[str](), first, True, set[int]()
    while killed:
        device = folder / "device"
        shutil.rmtree(device, ignore_errors=True)
        shutil.copytree(folder / "kept", device, symlinks=True)
        child = os.fork()
        if not child:
            die_at(count)
            install(device, fleet.public, works)
            os._exit(0)
        killed = os.waitpid(child, 0)[1] == signal.SIGKILL
        if (now := version(device)) not in (1, 2):
            problems.append(f"point {count}: boots {now}")
        seen.add(now)
        install(device, fleet.public, works)
        if version(device) != 2:
            problems.append(f"point {count}: cannot be updated any more")
        count += stride
    return [f"points {count - first} versions {sorted(seen)}", *problems]


if __name__ == "__main__":
    np.seterr(all="raise")
    print(json.dumps(sweep(Path(sys.argv[2]), 1, int(sys.argv[3]))))
