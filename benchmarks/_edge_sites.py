"""Boards for the loop of benchmarks/edge_loop.py: their client, their server's federation, their frames and labels."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

import polypfed as pf
from polypfed.backends.device import beside
from polypfed.backends.site_file import SiteFile
from polypfed.clients import DetectorClient
from polypfed.clients.on_device import digest_of, version
from polypfed.core.rundir import save_model
from polypfed.data.store import SampleStore, Vault, export_labels, import_labels
from polypfed.detect.export import find_template

SITES, SIZE = ("kvasir_seg", "polypgen_c1"), 160


def client(name: str, base: Path, names: list[str], arch: str, warm: str, epochs: int = 6) -> DetectorClient:
    """Trains on what its board keeps: `[device]` gives it the store."""
    settings: dict[str, Any] = {"warm_start": warm} if warm else {}
    return DetectorClient(name, [], base / "val", arch=arch, imgsz=SIZE, epochs=epochs, **settings)


def federation(
    names: list[str], base: Path, arch: str, warm: str, rounds: int = 3, **_: Any
) -> tuple[pf.Federation, int]:
    initial = client(names[0], base, names, arch, warm).initial()
    return pf.Federation(initial=initial, strategy=pf.strategies.FedAvg(), quorum=len(names)), rounds


def board(folder: Path, arch: str, **more: Any) -> str:
    """A site's [device]."""
    given = {"frames": "frames", "template": str(find_template(arch, SIZE).where), "store": "samples", "every": 1}
    given |= {"key": "samples.key", "threads": 1} | more
    return "\n[device]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in given.items())


def divide(source: Path, folder: Path, images: int) -> dict[str, Path]:
    """80 : 20 into `frames` (images alone) and `val`; returns where the label of each frame lies."""
    names = sorted(p.stem for p in (source / "images").glob("*.jpg"))
    np.random.default_rng(1).shuffle(names)
    cut = images * 4 // 5
    for part in ("frames", "val/images", "val/labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in names[:cut]:
        shutil.copy(source / "images" / f"{name}.jpg", folder / "frames")
    for name in names[cut:images]:
        shutil.copy(source / "images" / f"{name}.jpg", folder / "val" / "images")
        shutil.copy(source / "labels" / f"{name}.txt", folder / "val" / "labels")
    return {name: source / "labels" / f"{name}.txt" for name in names[:cut]}


def watch_and_label(path: Path, labels: dict[str, Path]) -> int:
    """One pass of the detector over the frames; what it keeps goes out as YOLO and comes back with the true labels."""
    site = SiteFile.load(path)
    client, folder = site.open(), path.parent
    spec, x = client.initial()
    save_model(site.board().models / f"{version(0, digest_of(x))}.safetensors", spec, x)
    with beside(site) as (device,):
        device._thread.join()
    with SampleStore(folder / "samples", Vault(folder / "samples.key", create=False)) as store:
        count, out = export_labels(store, folder / "to-label", "yolo"), folder / "to-label"
        for record in store.records():
            (out / "labels" / f"{record.id}.txt").write_text(labels[Path(store.name(record.id)).stem].read_text())
        done = import_labels(store, out, "yolo", "the data set's authors", "negative")
    assert done["labelled"] == count
    return count
