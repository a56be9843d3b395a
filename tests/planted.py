"""Sites whose images, keys, folders and environment carry markers, and a search for these in all that leaves a site."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from polypfed import Federation
from polypfed.core.messages import Reply, encode
from polypfed.privacy import stages
from polypfed.privacy.keyring import provision
from tests.problems import Scripted, honest

NAME, META, TOKEN = "DOE-JANE-19700101", "PATIENT-4711-EXIF", "token-5f0c9e1b7a"
SITES, ARCH = ["a", "b", "c"], "yolov5n-0.5"


def site(folder: Path, seed: int) -> Path:
    """Discs whose files are named after a patient and carry her number as metadata."""
    sys.path.insert(0, str(Path(__file__).parent / "clients"))
    from polyps import write_site

    write_site(folder, 5, seed)
    for path in sorted((folder / "images").iterdir()):
        about = PngImagePlugin.PngInfo()
        about.add_text("Comment", META)
        with Image.open(path) as image:
            image.load()
            image.save(path.with_name(f"{NAME}-{path.name}"), pnginfo=about)
        path.unlink()
        label = folder / "labels" / f"{path.stem}.txt"
        label.rename(label.with_name(f"{NAME}-{label.name}"))
    return folder


class Watched(Scripted):
    """Keeps every message as bytes."""

    def __init__(self, inner: Any) -> None:
        super().__init__(honest, inner)
        self.sent: list[bytes] = []

    def exchange(self, tasks: Any, deadline: float) -> Iterator[Reply]:
        self.sent.extend(encode(task) for task in tasks.values())
        for reply in super().exchange(tasks, deadline):
            self.sent.append(encode(reply))
            yield reply


def federation(root: Path, run: Path, mode: Any, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """Three sites with keys and planted images, in a process whose environment holds a token."""
    from polypfed.clients import DetectorClient
    from polypfed.select import Below

    monkeypatch.setenv("WANDB_API_KEY", TOKEN)
    clients = [
        DetectorClient(
            name, site(root / name / "train", i), site(root / name / "val", i + 7), imgsz=64, batch=4, arch=ARCH,
            selector=Below(0.7), directory=run / "sites" / name,
        )
        for i, name in enumerate(SITES)
    ]  # fmt: skip
    provision(SITES, run)
    return Federation(clients=clients, keys=run / "keys", evaluate="global", stages=stages(mode), quorum=3)


def secrets(run: Path) -> list[bytes]:
    """Pieces of every private key of the run: identities, and the secret key of an encrypted one."""
    folders = [run / "keys", *(run / "sites" / n / "keys" for n in SITES)]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    private = [path.read_bytes() for path in files if path.suffix != ".json"]
    assert len(private) >= 4
    return [piece for data in private for piece in (data[-64:-32], data[-32:])]


def search(run: Path, sent: list[bytes], *logs: bytes) -> None:
    """No marker in what was sent, in the run's folder but for what stays at a site, in its report or in the logs."""
    stays = {run / "sites" / n / part for n in SITES for part in ("selection", "keys")}
    kept = [p for p in run.rglob("*") if p.is_file() and not stays & set(p.parents) and p.parent != run / "keys"]
    assert {"audit.jsonl", "history.jsonl", "report.html"} <= {p.name for p in kept}
    assert any(p.suffix == ".ckpt" for p in kept)
    assert len(sent) >= 2 * 2 * len(SITES)
    markers = [NAME.encode(), META.encode(), TOKEN.encode(), *secrets(run)]
    places = [*((str(p), p.read_bytes()) for p in kept), *(("message", m) for m in sent), *(("log", d) for d in logs)]
    for where, data in places:
        for marker in markers:
            assert marker not in data, where
