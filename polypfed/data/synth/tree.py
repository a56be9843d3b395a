"""Whole synthetic federations on disk, in the same layout as a partition of real images."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from polypfed.core.errors import ConfigError
from polypfed.data.files import Progress, new_folder, refuse_equal, safe_name
from polypfed.data.labels import label_text
from polypfed.data.manifest import HELD_OUT, Entry, Manifest
from polypfed.data.sample import Sample
from polypfed.data.skew import skew
from polypfed.data.synth.camera import check_size
from polypfed.data.synth.render import frame
from polypfed.data.synth.seeds import GENERATOR_VERSION, cv, rng
from polypfed.data.yolo import write_sidecar

_QUALITY = 90
_YAML = "train: train/images\nval: val/images\nnames:\n  0: polyp\n"


def synth(
    root: Path,
    sites: int | Sequence[str] = 4,
    train: int = 100,
    val: int = 40,
    size: int = 192,
    seed: int = 0,
    progress: Progress | None = None,
) -> Manifest:
    """Write a federation of synthetic colonoscopy frames; it appears whole or not at all.

    The layout is a partition's: `ROOT/<site>/{train,val}/{images,labels}`, `ROOT/<site>/data.yaml` and
    `ROOT/manifest.json`; open it with `open_partition`. No patient is in both train and val. Sites differ in camera,
    light, mucosa, polyps and screen layout; the share of negatives of each stands in the manifest under `skew`.

    Args:
        root: folder to create; must not exist or be empty.
        sites: number of sites ("site-1", "site-2", ...), or their names. A site's frames depend on its name and the
            seed, not on the other sites; names with consecutive numbers differ most.
        train, val: images per site.
        size: image width in pixels, 64 to 640; the height is the site's.
        seed: of all draws.
        progress: called with (images done, images in all).

    Raises:
        ConfigError: a number out of range.
        DataError: `root` is not empty or cannot be written, or a name is not usable.
        MissingExtraError: OpenCV is not installed.
    """
    names = [f"site-{k + 1}" for k in range(sites)] if isinstance(sites, int) else [safe_name(s) for s in sites]
    _check(names, train, val, size)
    refuse_equal(names, root)
    cv()
    entries: list[Entry] = []
    pools: dict[str, list[Sample]] = {}
    with new_folder(Path(root)) as temporary:
        for name in names:
            first = 0
            for split, count in (("train", train), ("val", val)):
                done, total = len(entries), len(names) * (train + val)
                step: Progress | None = (lambda k, _, d=done, t=total: progress(d + k, t)) if progress else None
                samples, first = _split(temporary / name / split, name, first, count, size, seed, step)
                pools.setdefault(name, []).extend(samples)
                entries += [_entry(sample, name, split, temporary) for sample in samples]
            (temporary / name / "data.yaml").write_bytes(_YAML.encode())
        parameters = {"generator": GENERATOR_VERSION, "sites": names, "train": train, "val": val, "size": size}
        manifest = Manifest("synth", seed, parameters, tuple(entries), skew(pools))
        manifest.write(temporary)
    return manifest


def _check(names: Sequence[str], train: int, val: int, size: int) -> None:
    if not names or HELD_OUT in names:
        raise ConfigError(f"at least one site, none of them called '{HELD_OUT}'", where="sites")
    for what, value in (("train", train), ("val", val)):
        if value < 1:
            raise ConfigError(f"{value} images, must be at least 1", where=what)
    check_size(size)


def schedule(site: str, seed: int, first: int) -> Iterator[tuple[int, int, int]]:
    """Endless (patient, sequence, frame) of a site from patient `first`: 1 to 3 sequences of 1 to 4 frames each."""
    while True:
        draw = rng("schedule", seed, site, first)
        for sequence in range(int(draw.integers(1, 4))):
            for index in range(int(draw.integers(1, 5))):
                yield first, sequence, index
        first += 1


def _split(
    folder: Path, site: str, first: int, count: int, size: int, seed: int, progress: Progress | None
) -> tuple[list[Sample], int]:
    """Write one YOLO folder from patient `first` on; its samples and the first patient not used."""
    samples: list[Sample] = []
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number, (patient, sequence, index) in zip(range(1, count + 1), schedule(site, seed, first), strict=False):
        samples.append(_write(folder, site, patient, sequence, index, size, seed))
        if progress:
            progress(number, count)
    write_sidecar(samples, folder)
    return samples, 1 + max(int(sample.group.rpartition("-p")[2]) for sample in samples)


def _write(folder: Path, site: str, patient: int, sequence: int, index: int, size: int, seed: int) -> Sample:
    made = frame(site, f"p{patient:04d}", sequence, index, size, seed)
    group = f"{site}-p{patient:04d}"  # with the site: several sites can be divided anew without a clash
    height, width = made.image.shape[:2]
    name = f"{group}-s{sequence}-{index:03d}"
    image = folder / "images" / f"{name}.jpg"
    cv2 = cv()
    _, data = cv2.imencode(".jpg", cv2.cvtColor(made.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    image.write_bytes(data.tobytes())
    (folder / "labels" / f"{name}.txt").write_bytes(label_text(made.boxes, (width, height), image).encode())
    return Sample(name, image, made.boxes, (width, height), centre=site, group=group, source="synth")


def _entry(sample: Sample, site: str, split: str, root: Path) -> Entry:
    image = sample.image
    label = image.parent.parent / "labels" / f"{sample.id}.txt"
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (image, label)]
    return Entry(
        site, split, image.name, sample.source, sample.centre, sample.group, image.name, sample.size, *digests
    )  # fmt: skip
