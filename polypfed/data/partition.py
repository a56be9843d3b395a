"""From samples to the folders of a federation: groups whole, centres held out, every file hashed."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from polypfed.core.errors import DataError
from polypfed.data.divide import Parts, Sites, Wish, divide
from polypfed.data.files import Progress, canonical_json, new_folder, read_file, refuse_equal
from polypfed.data.groups import group_samples
from polypfed.data.manifest import Entry, Manifest
from polypfed.data.sample import Sample
from polypfed.data.skew import skew
from polypfed.data.yolo import fill_yolo

_YAML = "train: train/images\nval: val/images\nnames:\n  0: polyp\n"


def partition(
    samples: Sequence[Sample],
    root: Path,
    mode: str = "by_centre",
    sites: Sites = None,
    val: float = 0.25,
    seed: int = 0,
    *,
    alpha: float = 0.5,
    shares: Sequence[float] = (),
    held_out: Sequence[str] = (),
    min_images: int = 2,
    min_boxes: int = 0,
    near: bool = True,
    appearance: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Divide samples among sites, write `ROOT/<site>/{train,val}/{images,labels}` and `ROOT/manifest.json`.

    A group (patient, exam, sequence) is never divided, neither between sites nor between train and val. Samples without
    a group are grouped with their near-duplicates. The result depends on samples, parameters and seed alone.

    Args:
        samples: from one data set or several; ids that occur twice get their source in front.
        root: folder to create; must not exist or be empty.
        mode: "by_centre" (a site is a centre or a list of centres), "iid" (equal parts), "quantity" (unequal parts),
            "dirichlet" (unequal number and size of polyps).
        sites: for "by_centre" a mapping of site to centres, or to `{"train": centres, "val": centres}`; a list of
            centres; or None for every centre. Otherwise the number of sites, or their names. Sites that name the same
            centre share it.
        val: share of each site's images for validation, between 0 and 1; balanced over number and size of polyps.
        alpha: concentration of "dirichlet", and of "quantity" without `shares`; the smaller, the more sites differ.
        shares: sizes of the sites of "quantity", relative.
        held_out: centres that no site may see; they are written to `ROOT/test`.
        min_images, min_boxes: least of each at every site; random modes draw up to 100 times.
        near: false leaves samples without a group single instead of looking for near-duplicates.
        appearance: add distances of colour and sharpness to the skew figures; decodes every image.
        progress: called with (done, total).

    Raises:
        ConfigError: parameters that contradict each other or the samples.
        DataError: unusable samples, a group in two sites' centres, a `*.cache` beside the images, sites too small.
    """
    wish = Wish(mode, sites, val, seed, alpha, tuple(shares), tuple(sorted(held_out)), min_images, min_boxes)
    samples = _named(samples)
    _refuse_caches(samples)
    report = _Passes(progress, len(samples), passes=2 if near else 1)
    groups = [[samples[i] for i in g] for g in group_samples(samples, near=near, progress=report.step(0))]
    parts = divide([_labelled(group) for group in groups], wish)
    with new_folder(Path(root)) as temporary:
        entries = _write(parts, temporary, report, first=len(samples) if near else 0)
        figures = skew(_pools(parts), appearance=appearance)
        manifest = Manifest(mode, seed, _parameters(wish, near), entries, figures)
        manifest.write(temporary)
    return manifest


def _parameters(wish: Wish, near: bool) -> dict[str, Any]:
    """As they will be read back from JSON."""
    parameters: dict[str, Any] = json.loads(canonical_json(asdict(wish) | {"near": near}))
    return {name: value for name, value in parameters.items() if name not in ("mode", "seed")}


def _named(samples: Sequence[Sample]) -> list[Sample]:
    """In an order of their own, with ids that are unique over all sources."""
    samples = sorted(samples, key=lambda s: (s.source, s.centre, s.id))
    if not samples:
        raise DataError("no samples to divide")
    often = Counter(sample.id for sample in samples)
    named = [replace(s, id=f"{s.source}-{s.id}") if often[s.id] > 1 and s.source else s for s in samples]
    refuse_equal((sample.id for sample in named), "samples")
    return named


def _refuse_caches(samples: Sequence[Sample]) -> None:
    folders = {sample.image.parent for sample in samples}
    for folder in sorted(folders | {f.parent for f in folders} | {f.parent / "labels" for f in folders}):
        for path in sorted(folder.glob("*.cache")):
            raise DataError("a cache that ultralytics would run as code", where=path, remedy="Delete it")


def _labelled(group: Sequence[Sample]) -> list[Sample]:
    return [replace(sample, group=sample.group or f"near-{group[0].id}") for sample in group]


def _pools(parts: Parts) -> dict[str, list[Sample]]:
    """Train and val together, per site."""
    pools: dict[str, list[Sample]] = {}
    for (site, _), samples in parts.items():
        if site:
            pools.setdefault(site, []).extend(samples)
    return pools


def _write(parts: Parts, root: Path, report: "_Passes", first: int) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    for (site, split), samples in parts.items():
        folder = root / site / split
        files = fill_yolo(samples, folder, progress=report.step(first))
        first += len(samples)
        entries += [_entry(s, site, split, f, root) for s, f in zip(samples, files, strict=True)]
    for site in _pools(parts):
        (root / site / "data.yaml").write_bytes(_YAML.encode())
    return tuple(entries)


def _entry(sample: Sample, site: str, split: str, image: Path, root: Path) -> Entry:
    entry = Entry(
        site=site,
        split=split,
        file=image.name,
        source=sample.source,
        centre=sample.centre,
        group=sample.group,
        original=sample.name or sample.image.name,
        size=sample.size,
        image_sha256="",
        label_sha256="",
    )
    digests = [hashlib.sha256(read_file(path)).hexdigest() for path in entry.paths(root)]
    return replace(entry, image_sha256=digests[0], label_sha256=digests[1])


class _Passes:
    """Joins the progress of several passes over the samples into one."""

    def __init__(self, progress: Progress | None, count: int, passes: int) -> None:
        self.progress, self.total = progress, count * passes

    def step(self, before: int) -> Progress | None:
        progress, total = self.progress, self.total
        return (lambda done, _: progress(before + done, total)) if progress else None
