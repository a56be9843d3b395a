"""DetectorClient on tiny sites: what is selected, trained, sent; that nothing leaks and nothing is written."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from polyps import write_site

from polypfed.backends import Local
from polypfed.clients import DetectorClient
from polypfed.clients.detector_client import _resident
from polypfed.clients.examples import write_samples
from polypfed.clients.frames import Augment, Batches, Frames
from polypfed.clients.isolation import isolated
from polypfed.core.errors import ConfigError, DataError
from polypfed.core.messages import Task, Update
from polypfed.select import All, Below, HardestK, MissedOrFalse, Selector, read_decisions

PLAIN = Augment(affine=False, hsv=False, flip=False, flip_vertical=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sites")
    for name, count in (("a", 6), ("b", 5)):
        write_site(folder / name / "train", count, seed=ord(name))
        write_site(folder / name / "val", 4, seed=ord(name) + 50)
    return folder


def client(root: Path, name: str = "a", **settings: Any) -> DetectorClient:
    settings = {"imgsz": 64, "batch": 4, "selector": All()} | settings
    return DetectorClient(name, root / name / "train", root / name / "val", **settings)


def task(x: np.ndarray, round: int = 1, seed: int = 11, kind: Any = "fit") -> Task:
    return Task(round, kind, {"model": x}, {"seed": seed})


@pytest.fixture(scope="module")
def start(root: Path) -> np.ndarray:
    return client(root).initial()[1]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_layout(root, start):
    spec, x = client(root).initial()
    assert (client(root, "b").initial()[1] == x).all()
    assert (client(root, init_seed=1).initial()[1] != x).any()
    names = [p.name for p in spec.parts]
    assert spec.size == 2_519_683
    assert "model.24.dfl.conv.weight" not in names
    assert not [n for n in names if "num_batches" in n]
    assert all("running_" in p.name for p in spec.parts if p.start >= spec.boundary)
    assert np.isfinite(x).all()


def test_fit_and_evaluate(root, start):
    one = client(root)
    update = one.fit(task(start))
    assert update.weight == 6
    delta = update.vectors["delta"]
    assert (delta.dtype, delta.shape) == (np.float32, start.shape)
    spec = one.initial()[0]
    assert np.abs(delta[spec.trainable]).max() > 0
    assert np.abs(delta[spec.buffers]).max() > 0  # BatchNorm statistics travel
    assert set(update.metrics) == {"images", "kept", "loss", "select_s", "train_s", "cpu_s"}
    result = one.evaluate(task(start + delta, kind="evaluate"))
    assert set(result.metrics) == {"map50", "map50_95", "precision", "recall", "f1"}
    assert result.weight == 4
    assert client(root).fit(task(start)).metrics["loss"] == update.metrics["loss"]


def test_same_bits_whoever_trained_before(root, start):
    a = client(root, augment=Augment(mosaic=0.5), epochs=2)
    first = a.fit(task(start)).vectors["delta"]
    other = client(root, "b", freeze=3, optimizer="SGD", lr=0.01, augment=PLAIN)
    other.fit(task(start, seed=5))
    other.evaluate(task(start, kind="evaluate"))
    assert (a.fit(task(start)).vectors["delta"] == first).all()
    assert (client(root, augment=Augment(mosaic=0.5), epochs=2).fit(task(start)).vectors["delta"] == first).all()
    assert (a.fit(task(start, seed=12)).vectors["delta"] != first).any()
    uncached = client(root, augment=Augment(mosaic=0.5), epochs=2, cache="none")
    assert (uncached.fit(task(start)).vectors["delta"] == first).all()


@pytest.mark.slow
def test_same_bits_in_a_worker_process(root, start):
    clients = [client(root, n) for n in "ab"]
    here = {c.name: c.fit(task(start)).vectors["delta"] for c in clients}
    backend = Local(workers=2)
    backend.host([client(root, n) for n in "ab"], None)
    try:
        there = {r.client: r for r in backend.exchange({n: task(start) for n in "ab"}, deadline=120)}
    finally:
        backend.close()
    for name, update in there.items():
        assert isinstance(update, Update), update
        assert (update.vectors["delta"] == here[name]).all()


def test_frozen_layers_do_not_move(root, start):
    one = client(root, freeze=10)
    spec = one.initial()[0]
    moved = spec.views(one.fit(task(start)).vectors["delta"])
    frozen = {n for n in moved if int(n.split(".")[1]) < 10}
    assert not any(moved[n].any() for n in frozen)
    assert all(moved[n].any() for n in moved if n not in frozen)
    assert all(p.requires_grad for p in _resident("yolov5n").learning())
    assert len(_resident("yolov5n").learning()) == len([p for p in spec.parts if p.start < spec.boundary])


class Even:
    """Keeps every second image and remembers what it was shown."""

    judge, blind = None, False

    def choose(self, scores: Any, rng: Any) -> Any:
        self.seen = scores
        return np.arange(len(scores)) % 2 == 0


def test_only_what_is_kept_is_trained_on(root, start, tmp_path, monkeypatch):
    selector = Even()
    one = client(root, selector=selector, directory=tmp_path / "sites" / "a", augment=Augment(mosaic=1.0))
    used: set[int] = set()
    real = Batches.get_image_and_label
    monkeypatch.setattr(Batches, "get_image_and_label", lambda self, i: used.add(int(self.kept[i])) or real(self, i))
    update = one.fit(task(start, round=3))
    assert used == {0, 2, 4}
    assert (update.weight, update.metrics["images"], update.metrics["kept"]) == (3, 6, 3)
    rows = read_decisions(tmp_path / "sites" / "a", "a")
    assert [r.kept for r in rows] == [True, False] * 3
    assert [r.image for r in rows] == [f"f{n:02d}" for n in range(6)]
    assert [r.confidence for r in rows] == pytest.approx([s.confidence for s in selector.seen])
    assert all(0 < r.confidence < 1 for r in rows)
    assert [p.name for p in (tmp_path / "sites" / "a" / "selection").iterdir()] == ["round-0003.csv"]


def test_nothing_kept_is_a_legal_update_of_weight_zero(root, start):
    update = client(root, selector=Below(0.0)).fit(task(start))
    assert update.weight == 0
    assert not update.vectors["delta"].any()
    assert "loss" not in update.metrics
    assert update.metrics["kept"] == 0


@pytest.mark.parametrize("selector", [Below(0.7), MissedOrFalse(otherwise=None), HardestK(2)])
def test_built_in_selectors_run(root, start, selector: Selector):
    # An untrained model finds nothing: every polyp is missed, the one negative is not.
    expected = {Below: 6, MissedOrFalse: 5, HardestK: 2}[type(selector)]
    assert client(root, selector=selector).fit(task(start)).metrics["kept"] == expected


def test_early_stopping_needs_patience(root, start, monkeypatch):
    epochs: list[int] = []
    real = Batches.epoch
    monkeypatch.setattr(Batches, "epoch", lambda self, b, r: epochs.append(1) or real(self, b, r))
    monkeypatch.setattr(
        DetectorClient, "_score", lambda self, model: type("M", (), {"map50": 1.0 / (len(epochs) + 1)})()
    )
    client(root, epochs=6, patience=2).fit(task(start))
    assert len(epochs) == 3  # the first is the best, then two without a better one
    epochs.clear()
    client(root, epochs=4).fit(task(start))
    assert len(epochs) == 4


def test_rate_decays_by_round(root, start):
    one = client(root, optimizer="SGD", lr=0.01, lr_decay=0.5, momentum=0.0, clip=0.0, weight_decay=0.0, batch=8)
    section = one.initial()[0].trainable  # one step: the move is rate times gradient
    first, third = (one.fit(task(start, round=r)).vectors["delta"][section].astype(np.float64) for r in (1, 3))
    # The difference x' - x carries the rounding of x' (float32), hence norms, not values.
    assert np.linalg.norm(third) / np.linalg.norm(first) == pytest.approx(0.25, rel=1e-3)


def test_nothing_is_written_beside_the_images(root, start, tmp_path):
    site = write_site(tmp_path / "a" / "train", 4).parent
    write_site(site / "val", 3)
    (site / "train" / "labels.cache").write_bytes(b"not a cache: ultralytics would unpickle this")
    before = tree(tmp_path)
    for folder in (site / "train", site / "train" / "images", site / "train" / "labels"):
        os.chmod(folder, 0o555)
    try:
        one = client(tmp_path)
        one.evaluate(task(start + one.fit(task(start)).vectors["delta"], kind="evaluate"))
        assert tree(tmp_path) == before
    finally:
        for folder in (site / "train", site / "train" / "images", site / "train" / "labels"):
            os.chmod(folder, 0o755)


def test_bad_data_names_the_file(root, start, tmp_path):
    with pytest.raises(DataError, match="missing"):
        client(tmp_path, "missing").fit(task(start))
    site = write_site(tmp_path / "a" / "train", 3)
    (site / "labels" / "f01.txt").write_text("0 0.9 0.5 0.4 0.2\n")
    with pytest.raises(DataError, match=r"f01\.txt"):
        client(tmp_path).fit(task(start))
    (site / "labels" / "f01.txt").write_text("")
    whole = (site / "images" / "f02.png").read_bytes()
    (site / "images" / "f02.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"f02\.png"):
        client(tmp_path).fit(task(start))
    for file in [*site.rglob("*.png"), *site.rglob("*.txt")]:
        file.unlink()
    with pytest.raises(DataError, match="no image"):
        client(tmp_path).fit(task(start))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"imgsz": 100}, "multiple of 32"),
        ({"batch": 0}, "a: batch: must be a whole number of at least 1, got 0"),
        ({"lr": -1.0}, "a: lr: must be a number above 0"),
        ({"lr": float("nan")}, "a: lr"),
        ({"momentum": 1.5}, "a: momentum"),
        ({"optimizer": "sgd"}, "one of SGD, Adam, AdamW"),
        ({"arch": "yolov9n"}, "a: arch: unknown architecture"),
        ({"freeze": True}, "a: freeze"),
        ({"freeze": 99}, "a: freeze"),
    ],
)
def test_wrong_settings(root, settings, message):
    with pytest.raises(ConfigError) as raised:
        client(root, **settings)
    assert message in str(raised.value)


def test_site_without_a_validation_set(root, start):
    one = DetectorClient("a", root / "a" / "train", imgsz=64)
    assert one.evaluate(task(start, kind="evaluate")).weight == 0
    with pytest.raises(ConfigError, match="patience needs a validation set"):
        DetectorClient("a", root / "a" / "train", imgsz=64, patience=1)


def test_samples_for_the_report(root, start, tmp_path):
    path = write_samples([client(root, "a"), client(root, "b")], start, tmp_path, per_site=2, conf=0.0)
    rows = json.loads(path.read_text())
    assert path == tmp_path / "samples" / "samples.json"
    assert [r["site"] for r in rows] == ["a", "a", "b", "b"]
    for row in rows:
        with Image.open(path.parent / row["image"]) as image:
            assert image.size == (64, 56)
        assert all(len(box) == 4 for box in row["true"])
        assert all(len(box) == 5 and 0 <= box[4] <= 1 for box in row["pred"])
    assert {p.suffix for p in path.parent.iterdir()} == {".jpg", ".json"}


def test_batches_without_augmentation_are_the_letterboxed_images(root):
    frames = Frames(root / "a" / "train", 64)
    batches = Batches(frames, np.arange(6), PLAIN)
    with isolated(0, 1):
        (batch,) = batches.epoch(8, np.random.default_rng(0))
    order = np.random.default_rng(0).permutation(6)
    assert batch["img"].shape == (6, 3, 64, 64)
    for place, which in enumerate(order):
        inner = batch["img"][place, :, 4:60].permute(1, 2, 0).numpy() * 255
        assert np.abs(inner - frames[int(which)]).max() <= 1
        assert (batch["img"][place, :, :4].numpy() * 255).round().max() == 114
        mine = batch["bboxes"][batch["batch_idx"] == place].numpy() * 64
        true = frames.boxes(int(which))
        assert mine == pytest.approx(
            np.c_[(true[:, :2] + true[:, 2:]) / 2 + [0, 4], true[:, 2:] - true[:, :2]].reshape(-1, 4), abs=1e-3
        )


@pytest.mark.parametrize("augment", [Augment(), Augment(mosaic=1.0), Augment(mosaic=0.5, hsv=False)])
def test_boxes_follow_their_polyp_through_the_augmentation(root, augment):
    frames = Frames(root / "a" / "train", 64)
    batches = Batches(frames, np.arange(1, 6), augment)
    seen = 0
    with isolated(3, 1):
        for batch in [b for _ in range(6) for b in batches.epoch(8, np.random.default_rng(0))]:
            for owner, (cx, cy, w, h) in zip(batch["batch_idx"].int(), batch["bboxes"] * 64, strict=True):
                assert min(cx - w / 2, cy - h / 2) >= -1e-3
                assert max(cx + w / 2, cy + h / 2) <= 64.001
                if min(w, h) < 8:
                    continue
                grey = batch["img"][owner].mean(0)
                inside = grey[int(cy - h / 5) : int(cy + h / 5) + 1, int(cx - w / 5) : int(cx + w / 5) + 1].mean()
                seen += 1
                assert inside > grey.median() - 0.05
    assert seen > 10
    assert batch["img"].shape[1:] == (3, 64, 64)


def test_images_are_shrunk_with_their_boxes(tmp_path):
    write_site(tmp_path / "t", 2, size=(320, 160), negatives=0)
    frames = Frames(tmp_path / "t", 64)
    assert frames[0].shape == (32, 64, 3)
    assert frames.boxes(0) == pytest.approx(frames.samples[0].boxes / 5, rel=1e-6)
