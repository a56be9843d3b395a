import hashlib
import json
import os
import random
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from polypfed.core.errors import ConfigError, DataError
from polypfed.data import Manifest, Sample, open_partition, partition, read_yolo

CENTRES = ("north", "south", "west")


@pytest.fixture
def samples(tmp_path, paint):
    """90 images: three centres of 15 patients with two images each; 0, 1 or 2 boxes."""
    boxes = np.array([[2, 2, 12, 12], [20, 20, 60, 44]], np.float32)
    return [
        Sample(
            f"{centre}-{n:02d}",
            paint(tmp_path / f"in/{centre}-{n:02d}.jpg", seed=100 * k + n),
            boxes[: (n // 2 + k) % 3],
            (64, 48),
            centre=centre,
            group=f"p{n // 2}",
            source="made",
        )
        for k, centre in enumerate(CENTRES)
        for n in range(30)
    ]


def where(manifest):
    """Image -> (site, split)."""
    return {entry.file: (entry.site, entry.split) for entry in manifest.entries}


def sizes(root):
    return {name: (len(s.samples("train")), len(s.samples("val"))) for name, s in open_partition(root).items()}


MODES = [
    {"mode": "by_centre"},
    {"mode": "iid", "sites": 4},
    {"mode": "quantity", "sites": 3, "shares": (1, 2, 3)},
    {"mode": "quantity", "sites": 3, "alpha": 2.0},
    {"mode": "dirichlet", "sites": 3, "alpha": 0.3},
    {"mode": "by_centre", "sites": {"a": ["north", "south"], "b": ["west"], "c": ["west"]}},
    {"mode": "by_centre", "sites": {"a": {"train": ["north"], "val": ["south"]}, "b": ["west"]}},
    {"mode": "iid", "sites": ["x", "y"], "held_out": ["west"]},
]


@pytest.mark.parametrize("options", MODES, ids=lambda o: "-".join(map(str, o.values())))
def test_every_mode_keeps_groups_whole_and_loses_nothing(tmp_path, samples, options):
    manifest = partition(samples, tmp_path / "fed", **options)
    homes = defaultdict(set)
    for entry in manifest.entries:
        homes[entry.centre, entry.group].add((entry.site, entry.split))
    assert all(len(places) == 1 for places in homes.values())
    assert sorted(entry.file for entry in manifest.entries) == sorted(s.image.name for s in samples)
    assert all(train and val for train, val in sizes(tmp_path / "fed").values())
    manifest.verify(tmp_path / "fed")
    assert Manifest.read(tmp_path / "fed") == manifest
    by_id = {s.id: s for s in samples}
    for site in open_partition(tmp_path / "fed").values():
        for found in (*site.samples("train"), *site.samples("val")):
            assert np.allclose(found.boxes, by_id[found.id].boxes, atol=1e-3)
            assert found.group == by_id[found.id].group
            assert found.image.read_bytes() == by_id[found.id].image.read_bytes()


@pytest.mark.parametrize("options", MODES[:5], ids=lambda o: "-".join(map(str, o.values())))
def test_same_seed_same_manifest_whatever_the_order(tmp_path, samples, options):
    first = partition(samples, tmp_path / "a", seed=3, **options)
    random.Random(1).shuffle(samples)
    second = partition(samples, tmp_path / "b", seed=3, **options)
    assert first.digest == second.digest
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()
    assert partition(samples, tmp_path / "c", seed=4, **options).digest != first.digest


def test_by_centre_sites_are_centres(tmp_path, samples):
    manifest = partition(samples, tmp_path / "fed")
    assert manifest.sites == CENTRES
    assert all(entry.site == entry.centre for entry in manifest.entries)
    assert sizes(tmp_path / "fed") == dict.fromkeys(CENTRES, (22, 8))


def test_validation_from_another_centre(tmp_path, samples):
    partition(samples, tmp_path / "fed", sites={"a": {"train": ["north"], "val": ["south"]}})
    site = open_partition(tmp_path / "fed")["a"]
    assert {s.centre for s in site.samples("train")} == {"north"}
    assert {s.centre for s in site.samples("val")} == {"south"}


def test_quantity_reaches_its_shares(tmp_path, samples):
    partition(samples, tmp_path / "fed", "quantity", 3, shares=(1, 2, 3))
    assert {k: sum(v) for k, v in sizes(tmp_path / "fed").items()} == {"site-1": 15, "site-2": 30, "site-3": 45} or all(
        abs(sum(v) - w) <= 2 for v, w in zip(sizes(tmp_path / "fed").values(), (15, 30, 45), strict=True)
    )


def test_dirichlet_is_more_skewed_than_iid(tmp_path, samples):
    skewed = partition(samples, tmp_path / "a", "dirichlet", 3, alpha=0.2).skew["divergence"]
    assert skewed > 5 * partition(samples, tmp_path / "b", "iid", 3).skew["divergence"]


def test_held_out_centres_are_in_no_site(tmp_path, samples):
    manifest = partition(samples, tmp_path / "fed", held_out=["west"])
    assert manifest.sites == ("north", "south")
    assert {(e.site, e.split) for e in manifest.entries if e.centre == "west"} == {("", "test")}
    assert len(read_yolo(tmp_path / "fed/test")) == 30
    assert sorted(open_partition(tmp_path / "fed")) == ["north", "south"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"mode": "random"}, "none of by_centre"),
        ({"val": 0}, "not between 0 and 1"),
        ({"val": 1.0}, "not between 0 and 1"),
        ({"sites": 3}, "by name"),
        ({"sites": ["east"]}, "no centre 'east'"),
        ({"held_out": ["east"]}, "no centre 'east'"),
        ({"sites": ["west"], "held_out": ["west"]}, "held out"),
        ({"sites": {"a b": ["west"]}}, "Use 'a_b'"),
        ({"sites": {"test": ["west"]}}, "may not be called 'test'"),
        ({"sites": {}}, "no site"),
        ({"sites": {"a": {"train": ["west"]}}}, "'train' and 'val'"),
        ({"sites": {"a": {"train": ["west"], "val": ["north"]}, "b": ["north"]}}, "validated on at one site"),
        ({"mode": "iid"}, "number of sites"),
        ({"mode": "iid", "sites": 0}, "no site"),
        ({"mode": "quantity", "sites": 2, "shares": (1, 2, 3)}, "3 shares for 2 sites"),
        ({"mode": "dirichlet", "sites": 2, "alpha": 0}, "positive"),
    ],
)
def test_contradictions_are_config_errors(tmp_path, samples, options, problem):
    with pytest.raises(ConfigError, match=problem):
        partition(samples, tmp_path / "fed", **options)
    assert not (tmp_path / "fed").exists()


def test_sites_that_are_too_small(tmp_path, samples):
    with pytest.raises(DataError, match=r"has \d+ images and \d+ boxes, wanted 40"):
        partition(samples, tmp_path / "a", min_images=40)
    with pytest.raises(DataError, match="too few groups"):
        partition([replace(s, group="same") for s in samples], tmp_path / "b")
    with pytest.raises(DataError, match="wanted 2 and 1000"):
        partition(samples, tmp_path / "c", "iid", 2, min_boxes=1000)


def test_redraws_until_every_site_has_enough(tmp_path, samples):
    partition(samples, tmp_path / "fed", "quantity", 4, alpha=0.5, min_images=8, seed=1)
    assert min(map(sum, sizes(tmp_path / "fed").values())) >= 8


def test_the_same_frame_in_centres_of_two_sites(tmp_path, samples, paint):
    twin = paint(tmp_path / "in/twin.jpg", seed=0)
    loose = [replace(samples[0], group=""), replace(samples[30], image=twin, group="")]
    with pytest.raises(DataError, match="centres of different sites: north, south"):
        partition([*samples[1:30], *samples[31:], *loose], tmp_path / "a")
    partition([*samples[1:30], *samples[31:], *loose], tmp_path / "b", sites={"a": ["north", "south"], "b": ["west"]})


def test_near_duplicates_stay_together(tmp_path, samples, paint):
    loose = [replace(s, group="") for s in samples]
    copies = [
        replace(s, id=f"copy-{s.id}", image=paint(tmp_path / f"in/copy-{s.id}.jpg", seed=k, quality=40))
        for k, s in enumerate(loose[:30])
    ]
    placed = where(partition([*loose, *copies], tmp_path / "fed", "iid", 3))
    assert all(placed[f"{s.id}.jpg"] == placed[f"copy-{s.id}.jpg"] for s in loose[:30])


@pytest.mark.parametrize("place", ["images/labels.cache", "labels.cache", "labels/x.cache"])
def test_caches_are_refused(tmp_path, make_yolo, place):
    folder = make_yolo(tmp_path / "d", {f"i{n}": "" for n in range(4)})
    (folder / place).write_bytes(b"\x80\x04")
    with pytest.raises(DataError, match="would run as code") as caught:
        partition(read_yolo(folder), tmp_path / "fed", "iid", 1)
    assert caught.value.where == str(folder / place)


def test_equal_ids_get_their_source(tmp_path, samples, paint):
    other = [
        replace(s, source="other", image=paint(tmp_path / f"in2/{s.id}.jpg", seed=k + 500))
        for k, s in enumerate(samples)
    ]
    manifest = partition([*samples, *other], tmp_path / "fed", "iid", 2)
    assert {e.file.split("-")[0] for e in manifest.entries} == {"made", "other"}
    with pytest.raises(DataError, match="same name"):
        partition([*samples, samples[0]], tmp_path / "again", "iid", 2)


def test_no_samples(tmp_path):
    with pytest.raises(DataError, match="no samples"):
        partition([], tmp_path / "fed")


def test_yaml_and_links(tmp_path, samples):
    partition(samples, tmp_path / "fed")
    site = open_partition(tmp_path / "fed")["north"]
    assert site.data_yaml.read_text() == "train: train/images\nval: val/images\nnames:\n  0: polyp\n"
    assert os.path.samefile(site.samples("train")[0].image, tmp_path / "in" / site.samples("train")[0].image.name)


def test_manifest_hashes_and_origin(tmp_path, samples):
    named = [replace(s, name=f"old name {s.id}.jpg") for s in samples]
    manifest = partition(named, tmp_path / "fed")
    entry = manifest.entries[0]
    image, label = entry.paths(tmp_path / "fed")
    assert entry.image_sha256 == hashlib.sha256(image.read_bytes()).hexdigest()
    assert entry.label_sha256 == hashlib.sha256(label.read_bytes()).hexdigest()
    assert (entry.original, entry.size) == (f"old name {image.stem}.jpg", (64, 48))
    text = (tmp_path / "fed/manifest.json").read_text()
    found = json.loads(text)
    assert text == json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"


def test_failure_leaves_nothing(tmp_path, samples):
    samples[50].image.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError):
        partition(samples, tmp_path / "fed")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_progress_is_one_rising_count(tmp_path, samples):
    seen = []
    partition([replace(s, group="") for s in samples], tmp_path / "fed", progress=lambda *s: seen.append(s))
    assert [done for done, _ in seen] == list(range(1, 181))
    assert {total for _, total in seen} == {180}


def test_real_sources_by_centre(tmp_path, real_data):
    names = ["kvasir_seg", "polypgen_c1", "polypgen_c2", "polypgen_c3", "polypgen_c4"]
    found = [s for n in names for s in read_yolo(real_data / "real" / n, centre=n, source=n)]
    manifest = partition(found, tmp_path / "fed", held_out=["polypgen_c4"])
    assert {name: row["images"] for name, row in manifest.skew["sites"].items()} == {
        "kvasir_seg": 1000, "polypgen_c1": 256, "polypgen_c2": 301, "polypgen_c3": 457,
    }  # fmt: skip
    manifest.verify(tmp_path / "fed")
