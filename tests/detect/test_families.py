"""YOLOv8 and YOLO11 beside YOLOv5: built by name from random weights, decoded, trained, federated; not for boards."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="install polypfed[yolo]")

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))
from polyps import write_site

import polypfed as pf
from polypfed.clients import DetectorClient
from polypfed.clients.frames import Augment
from polypfed.config import parse
from polypfed.core.errors import ConfigError, LayoutError
from polypfed.core.model import ModelSpec
from polypfed.detect import yolo
from polypfed.detect.export import architecture, find_template
from polypfed.detect.heads import Level
from polypfed.detect.offline import ultralytics
from polypfed.detect.widths import ARCHITECTURES, before_head, narrower
from polypfed.testing import check_client

NEW = ["yolov8n", "yolo11n"]
PLAIN = Augment(affine=False, hsv=False, flip=False, flip_vertical=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sites")
    for name in "ab":
        write_site(folder / name / "train", 4, seed=ord(name), negatives=0)
        write_site(folder / name / "val", 3, seed=ord(name) + 50)
    return folder


def client(root: Path, arch: str, name: str = "a", **settings: object) -> DetectorClient:
    given = {"imgsz": 64, "batch": 4, "selector": pf.select.All(), "augment": PLAIN} | settings
    return DetectorClient(name, root / name / "train", root / name / "val", arch=arch, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arch", "millions"),
    [("yolov8n", 3.01), ("yolo11n", 2.59), pytest.param("yolov8s", 11.14, marks=pytest.mark.slow)],
)
def test_sizes_layers_and_groups(arch: str, millions: float) -> None:
    model = yolo.build(arch)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert yolo.layers(model) - 1 == before_head(arch)
    part = yolo.group(model)
    groups = [part(name) for name, _ in model.named_parameters()]
    assert groups == sorted(groups, key=["backbone", "neck", "head"].index)
    assert set(groups) == {"backbone", "neck", "head"}


def test_every_name_is_one_that_ultralytics_has() -> None:
    ultralytics()
    from ultralytics.nn.tasks import yaml_model_load

    assert len(ARCHITECTURES) == 15
    for arch in ARCHITECTURES:
        assert yaml_model_load(f"{arch}.yaml")["scale"] == arch[-1]
        assert parse(f'[data.synth]\n[model]\narch = "{arch}"', Path("study.toml")).model.arch == arch


@pytest.mark.parametrize("arch", NEW)
def test_an_untrained_model_is_everywhere_as_unsure_as_its_prior(arch: str) -> None:
    images = [np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)]
    assert yolo.best_confidence(yolo.build(arch, prior=0.02), images, 64) == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("arch", ["yolov5n", *NEW])
def test_boxes_are_those_that_numpy_decodes(arch: str) -> None:
    """The library's own decoder for boards, on the raw heads of a model with arbitrary weights in them."""
    model = yolo.build(arch).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for level in model.model[-1].cv2:
            level[-1].weight.normal_(std=3)
        outputs, raw = model(torch.rand(1, 3, 64, 96))
    centre, start = [], 0
    for stride in (8, 16, 32):
        height, width = 64 // stride, 96 // stride
        cells = height * width
        boxes = raw["boxes"][0, :, start : start + cells].T.numpy().reshape(1, height, width, 64)
        found = Level(0, 0, stride, width, (1.0, 0), (1.0, 0)).decode(boxes, np.arange(cells))
        centre.append(np.concatenate(((found[:, :2] + found[:, 2:]) / 2, found[:, 2:] - found[:, :2]), axis=1))
        start += cells
    assert outputs[0, :4].T.numpy() == pytest.approx(np.concatenate(centre), abs=1e-3)
    assert outputs[0, 4].numpy() == pytest.approx(1 / (1 + np.exp(-raw["scores"][0, 0].numpy())), abs=1e-6)


@pytest.mark.parametrize("arch", NEW)
def test_loss_of_an_image_without_a_polyp_is_the_cross_entropy_of_its_cells(arch: str) -> None:
    """Of 84 cells that each say the prior, with 0: 84 log(1 / (1 - prior)), times ultralytics' gain of 0.5."""
    model = yolo.build(arch, prior=0.05).train()
    with torch.no_grad():
        for level in model.model[-1].cv3:
            level[-1].weight.zero_()
    none = {"batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    loss = model.loss({"img": torch.rand(1, 3, 64, 64), **none})[0]
    assert loss.detach().tolist() == pytest.approx([0, 0.5 * 84 * -math.log(0.95), 0], rel=1e-4)


@pytest.mark.parametrize("arch", NEW)
def test_a_site_trains_it_and_keeps_the_contract(root: Path, arch: str) -> None:
    check_client(lambda: client(root, arch), strategies=[pf.strategies.FedAvg()])


@pytest.mark.slow
@pytest.mark.parametrize("arch", NEW)
def test_two_sites_learn_their_discs(tmp_path: Path, arch: str) -> None:
    """From random weights, in three rounds of ten epochs, on the very images that are scored."""
    for name in "ab":
        write_site(tmp_path / name / "train", 8, seed=ord(name), negatives=0)
        (tmp_path / name / "val").symlink_to(tmp_path / name / "train")
    sites = [client(tmp_path, arch, name, epochs=10, lr=0.003) for name in "ab"]
    history = pf.Federation(clients=sites, strategy=pf.strategies.FedAvg()).run(3, pf.backends.Local())
    assert not history.failures
    found = {row["round"]: row["value"] for row in history.rows if row["metric"] == "map50" and not row["site"]}
    assert found[0] < 0.1
    assert found[3] > 0.8


def test_freezing_stops_before_the_head(root: Path) -> None:
    client(root, "yolov8n", freeze=22)
    with pytest.raises(ConfigError, match="at most 22"):
        client(root, "yolov8n", freeze=23)
    with pytest.raises(ConfigError, match="at most 23"):
        client(root, "yolo11n", freeze=24)


@pytest.mark.parametrize("arch", [*NEW, pytest.param("yolov8l", marks=pytest.mark.slow)])
def test_boards_do_not_take_it_and_are_told_so(arch: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no form for devices"):
        find_template(arch, 320, tmp_path)
    with pytest.raises(ConfigError, match="has no form for devices"):
        narrower(arch, 0.5)
    with pytest.raises(ConfigError, match="unknown architecture"):
        yolo.build(f"{arch}-0.5")
    arrays = {n: t.numpy() for n, t in yolo.build(arch).state_dict().items() if t.is_floating_point()}
    with pytest.raises(LayoutError, match="not the layout of a YOLOv5"):
        architecture(ModelSpec.of(arrays))
