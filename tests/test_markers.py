"""Names and metadata planted in a site's images, keys and folders, searched for in all that leaves it."""

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from polypfed import Federation
from polypfed.core.messages import Reply, encode
from polypfed.privacy.keyring import provision
from polypfed.report import write_report
from tests.problems import Scripted

pytestmark = pytest.mark.skipif(not find_spec("ultralytics"), reason="no ultralytics: install polypfed[yolo]")
NAME, META = "DOE-JANE-19700101", "PATIENT-4711-EXIF"


def site(folder: Path, seed: int) -> Path:
    """Discs whose files are named after a patient and carry her number as metadata."""
    import sys

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


def test_no_planted_name_leaves_a_site(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from polypfed.clients import DetectorClient
    from polypfed.select import Below

    caplog.set_level(logging.DEBUG)
    root, run = tmp_path / NAME, tmp_path / "run"
    clients = [
        DetectorClient(
            name, site(root / name / "train", i), site(root / name / "val", i + 7), imgsz=64, batch=4,
            selector=Below(0.7), directory=run / "sites" / name,
        )
        for i, name in enumerate("ab")
    ]  # fmt: skip
    sent: list[bytes] = []

    class Watched(Scripted):
        def exchange(self, tasks: Any, deadline: float) -> Iterator[Reply]:
            sent.extend(encode(task) for task in tasks.values())
            for reply in super().exchange(tasks, deadline):
                sent.append(encode(reply))
                yield reply

    provision(["a", "b"], run)
    secrets = [(run / "sites" / n / "keys" / "identity.key").read_bytes()[-64:] for n in "ab"]
    fed = Federation(clients=clients, keys=run / "keys", evaluate="matrix")
    fed.run(1, Watched(lambda name, task, reply: iter([reply])), run)
    fed.resume(run, 2, Watched(lambda name, task, reply: iter([reply])))
    write_report(run)
    stays = {run / "sites" / n / part for n in "ab" for part in ("selection", "keys")}
    kept = [p for p in run.rglob("*") if p.is_file() and not stays & set(p.parents) and p.parent != run / "keys"]
    assert len(sent) > 8
    assert len(kept) > 8
    for where, data in [*((p, p.read_bytes()) for p in kept), *(("message", m) for m in sent)]:
        for marker in (NAME.encode(), META.encode(), *secrets):
            assert marker not in data, where
    assert META not in caplog.text


def test_the_markers_are_where_they_were_planted(tmp_path: Path) -> None:
    """So that the search above could have found them."""
    path = next((site(tmp_path, 0) / "images").iterdir())
    assert NAME in path.name
    assert META.encode() in path.read_bytes()
