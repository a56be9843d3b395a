"""The trial of a release on reference images, in its own process, and `polypfed release` from end to end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("tuf", reason="no tuf: install polypfed[release]")

from polypfed.cli import app
from polypfed.core.model import ModelSpec
from polypfed.core.rundir import load_model, save_model
from polypfed.data.images import encode
from polypfed.release.bundle import Card, read_bundle, write_bundle
from polypfed.release.errors import ReleaseRefused
from polypfed.release.smoke import Reference

TEMPLATE = Path(__file__).with_name("mini-64.zip")
RUN = CliRunner()


@pytest.fixture(scope="module")
def reference(discs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty frames of discs as a YOLO folder."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for i, (image, boxes) in enumerate(zip(discs[0][:20], discs[1][:20], strict=True)):
        (folder / "images" / f"{i:03d}.png").write_bytes(encode(image, "PNG"))
        rows = [((x0 + x1) / 128, (y0 + y1) / 128, (x1 - x0) / 64, (y1 - y0) / 64) for x0, y0, x1, y1 in boxes]
        text = "".join("0 " + " ".join(f"{v:.6f}" for v in row) + "\n" for row in rows)
        (folder / "labels" / f"{i:03d}.txt").write_text(text)
    return folder


def written(folder: Path, arrays: dict[str, np.ndarray], **card: Any) -> Path:
    spec = ModelSpec.of(arrays)
    path = folder / "release.safetensors"
    path.write_bytes(write_bundle(Card(1, **card), spec, spec.pack(arrays), TEMPLATE.read_bytes()))
    return path


def test_a_trained_model_passes_and_a_random_one_does_not(learned: Any, reference: Path, tmp_path: Path) -> None:
    trial = Reference(reference)
    good = written(tmp_path, learned, recall=0.5)
    trial(good, read_bundle(good.read_bytes()))
    bad = written(tmp_path, shrunk(learned), recall=0.5)
    with pytest.raises(ReleaseRefused, match="of the reference boxes"):
        trial(bad, read_bundle(bad.read_bytes()))


def shrunk(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Far too small to see anything."""
    return {name: (a if "running_var" in name else a * np.float32(1e-3)) for name, a in arrays.items()}


def test_a_slow_one_and_a_process_that_dies_or_hangs_are_refused(learned: Any, reference: Path, tmp_path: Path) -> None:
    slow = written(tmp_path, learned, seconds=1e-9)
    with pytest.raises(ReleaseRefused, match="s for an image"):
        Reference(reference)(slow, read_bundle(slow.read_bytes()))
    with pytest.raises(ReleaseRefused, match=r"more than 0\.2 s"):
        Reference(reference, patience=0.2)(slow, read_bundle(slow.read_bytes()))
    with pytest.raises(ReleaseRefused, match=r"ended with code 1 .*no reference image"):
        Reference(tmp_path)(slow, read_bundle(slow.read_bytes()))


def test_the_command_line_from_end_to_end(learned: Any, reference: Path, tmp_path: Path) -> None:
    spec = ModelSpec.of(learned)
    save_model(tmp_path / "model.safetensors", spec, spec.pack(learned))

    def do(*words: object) -> str:
        done = RUN.invoke(app, ["release", *map(str, words)])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    repo, keys, box = tmp_path / "repo", tmp_path / "keys", tmp_path / "box"
    do("init", repo, "--keys", keys, "--person", "ann", "--person", "bob", "--threshold", 2)
    do("create", repo, tmp_path / "model.safetensors", "--template", TEMPLATE, "--version", 1, "--group", "pilot")
    assert "1 more" in do("sign", repo, "--key", keys / "ann.pem")
    do("sign", repo, "--key", keys / "bob.pem")
    do("publish", repo, "--key", keys / "repository.pem")
    do("device", box, repo / "public" / "metadata" / "1.root.json", "--group", "pilot")
    assert "version 1 boots next" in do("install", box, repo / "public", "--reference", reference)
    assert "nothing newer" in do("install", box, repo / "public", "--reference", reference)
    (tmp_path / "models").mkdir()
    do("boot", box, "--to", tmp_path / "models")
    do("boot", box, "--to", tmp_path / "models", "--confirm")
    assert '"trial": false' in do("status", box)
    assert '"pilot"' in do("status", repo)
    taken = load_model(tmp_path / "models" / "release-000001.safetensors")[1]
    assert np.array_equal(taken, spec.pack(learned))
