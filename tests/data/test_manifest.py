import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polypfed.core.errors import DataError
from polypfed.data import Manifest, open_partition, partition, read_yolo


@pytest.fixture
def fed(tmp_path, make_yolo):
    samples = read_yolo(make_yolo(tmp_path / "in", {f"i{n}": "" for n in range(8)}), centre="c1", source="s")
    partition(samples, tmp_path / "fed", "iid", 2)
    return tmp_path / "fed"


def test_verifies_and_has_a_digest_of_its_own(fed):
    manifest = Manifest.read(fed)
    manifest.verify(fed)
    assert len(manifest.digest) == 64
    assert json.loads((fed / "manifest.json").read_text())["digest"] == manifest.digest
    assert replace(manifest, seed=1).digest != manifest.digest
    assert replace(manifest, skew={}).digest == manifest.digest


def test_changed_missing_and_strange_files_are_found(fed):
    manifest = Manifest.read(fed)
    (image, label), (gone, _), *_ = (entry.paths(fed) for entry in manifest.entries)
    label.write_text("0 .5 .5 .5 .5\n")
    gone.unlink()
    (label.parent / "new.txt").write_text("")
    image_before = image.stat()
    os.unlink(image)
    image.write_bytes(b"\xff\xd8\xff")
    assert image_before.st_size != 3
    found = {(Path(fault.where).name, fault.problem.split(" (")[0]) for fault in manifest.problems(fed)}
    assert found == {
        (image.name, "changed since the partition was made"),
        (label.name, "changed since the partition was made"),
        (gone.name, "no such file"),
        ("new.txt", "not in the manifest"),
    }
    with pytest.raises(DataError, match="changed since"):
        manifest.verify(fed)


def test_a_divided_group_is_found(fed):
    manifest = Manifest.read(fed)
    entries = tuple(replace(entry, group="one patient") for entry in manifest.entries)
    with pytest.raises(DataError, match="group 'one patient' is divided between"):
        replace(manifest, entries=entries).verify(fed)


@pytest.mark.parametrize("name", ["seed", "mode", "parameters", "entries", "schema", "digest"])
def test_any_change_of_the_text_is_found(fed, name):
    found = json.loads((fed / "manifest.json").read_text())
    found[name] = {"seed": 9, "parameters": {}, "entries": found["entries"][1:]}.get(name, "other")
    (fed / "manifest.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match="does not match its own digest"):
        Manifest.read(fed)


HOSTILE = [
    "..",
    "../x.jpg",
    "/etc/passwd",
    "a/../../x.jpg",
    "a\0.jpg",
    "x\\y.jpg",
    ".hidden",
    "",
    "a b.jpg",
    "u\u0308.jpg",
    7,
]


@pytest.mark.parametrize("field", ["file", "site"])
@pytest.mark.parametrize("value", HOSTILE)
def test_names_that_lead_elsewhere_are_refused(fed, field, value):
    manifest = Manifest.read(fed)
    entries = (replace(manifest.entries[0], **{field: value}), *manifest.entries[1:])
    replace(manifest, entries=entries).write(fed)  # with a digest that fits
    with pytest.raises(DataError):
        Manifest.read(fed)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"entries": [1]}', '{"entries": {}}', "\xff", "[" * 99_999])
def test_other_text_is_refused(fed, text):
    (fed / "manifest.json").write_text(text)
    with pytest.raises(DataError):
        Manifest.read(fed)


def test_mutated_text_is_refused_or_the_same(fed):
    whole, rng = (fed / "manifest.json").read_bytes(), np.random.default_rng(5)
    manifest = Manifest.read(fed)
    for _ in range(500):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(0, 256)
        (fed / "manifest.json").write_bytes(data)
        with suppress(DataError):
            assert Manifest.read(fed) == manifest  # only the skew figures are not covered by the digest


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_special_files_are_refused_without_waiting(fed, kind):
    manifest = Manifest.read(fed)
    image, _ = manifest.entries[0].paths(fed)
    if kind == "link":
        image.rename(fed.parent / "away.jpg")
        image.symlink_to(fed.parent / "away.jpg")
    else:
        image.unlink()
        os.mkfifo(image) if kind == "pipe" else image.mkdir()
    with pytest.raises(DataError, match=r"leads out|not a regular file|cannot be read"):
        manifest.verify(fed)


def test_sites_are_opened_sorted(fed):
    sites = open_partition(fed)
    assert list(sites) == ["site-1", "site-2"]
    assert sites["site-1"].train == fed / "site-1/train"
    assert {len(site.samples("train")) + len(site.samples("val")) for site in sites.values()} == {4}


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda fed: shutil.rmtree(fed), "no such folder"),
        (lambda fed: [shutil.rmtree(fed / f"site-{n}") for n in (1, 2)], "holds no site"),
        (lambda fed: shutil.rmtree(fed / "site-2/val"), "no such folder"),
        (lambda fed: shutil.rmtree(fed / "site-2/train/labels"), "no such folder"),
        (lambda fed: [p.unlink() for p in (fed / "site-1/val/images").iterdir()], "holds no image"),
    ],
)
def test_incomplete_sites_are_named(fed, spoil, problem):
    spoil(fed)
    with pytest.raises(DataError, match=problem) as caught:
        open_partition(fed)
    assert caught.value.remedy


def test_a_site_elsewhere_is_refused(fed):
    (fed / "site-2").rename(fed.parent / "away")
    (fed / "site-2").symlink_to(fed.parent / "away")
    with pytest.raises(DataError, match="leads out"):
        open_partition(fed)
