"""EdgeClient: what it refuses; and, where a template of yolov5n is in the cache, that it chooses as fp32 would."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="install polypfed[yolo]")
pytest.importorskip("ai_edge_litert", reason="no TFLite runtime: install polypfed[edge]")

from polypfed.clients import DetectorClient
from polypfed.clients.edge_client import EdgeClient
from polypfed.core.errors import ConfigError
from polypfed.core.messages import Task
from polypfed.detect.agreement import Limits
from polypfed.detect.export.environment import cache
from polypfed.select import All, Below, MissedOrFalse, read_decisions
from tests.clients.polyps import write_site

MINI = Path(__file__).parents[1] / "detect" / "mini-64.zip"
TEMPLATE = cache() / "templates" / "yolov5n-64.zip"


def test_settings(tmp_path):
    for settings, message in (
        ({}, "needs a template"),
        ({"template": MINI, "precisions": ("int4",)}, "precisions: must be some of"),
        ({"template": MINI, "selector": MissedOrFalse()}, "gives confidences alone"),
    ):
        with pytest.raises(ConfigError, match=message):
            EdgeClient("a", tmp_path, imgsz=64, **settings)


def test_a_template_of_another_detector(tmp_path):
    client = EdgeClient("a", write_site(tmp_path / "a", 4), imgsz=64, template=MINI)
    spec, x = client.initial()
    with pytest.raises(ConfigError, match="is of mini at 64, the site trains yolov5n at 64"):
        client.fit(Task(1, "fit", {"model": x}, {"seed": 1}))
    assert spec.size == len(x)


def test_without_scores_no_model_is_made(tmp_path):
    client = EdgeClient("a", write_site(tmp_path / "a", 4), imgsz=64, template=MINI, selector=All())
    update = client.fit(Task(1, "fit", {"model": client.initial()[1]}, {"seed": 1}))
    assert update.metrics["kept"] == 4
    assert "edge_bits" not in update.metrics


@pytest.mark.skipif(not TEMPLATE.is_file(), reason="no template: polypfed export yolov5n --image-size 64")
def test_it_chooses_as_fp32_does(tmp_path):
    folder = write_site(tmp_path / "a", 24)
    rng = np.random.default_rng(0)
    settings = {"imgsz": 64, "epochs": 1, "batch": 8, "directory": tmp_path / "one"}
    plain = DetectorClient("a", folder, selector=Below(0.02), **settings)
    x = plain.initial()[1].copy()
    head = plain.initial()[0].views(x)
    for level in range(3):
        head[f"model.24.cv3.{level}.2.weight"][...] = rng.normal(0, 20, head[f"model.24.cv3.{level}.2.weight"].shape)
    best = np.array([d.confidence for d in _decisions(plain, x)])
    threshold = float(np.sort(best)[11:13].mean())  # half of the frames are hard
    plain = replace(plain, selector=Below(threshold), _frames={}, _kept={})
    edge = EdgeClient(
        "a", folder, template=TEMPLATE, selector=Below(threshold), **{**settings, "directory": tmp_path / "two"},
        limits=Limits(0.5, 1.0, 0.0),
    )  # fmt: skip
    wanted, got = (_decisions(client, x) for client in (plain, edge))
    assert [d.kept for d in got] == [d.kept for d in wanted]
    update = edge.fit(Task(1, "fit", {"model": x}, {"seed": 1}))
    assert update.metrics["edge_bits"] in (8, 16, 32)
    assert 0 <= update.metrics["edge_twice"] <= 24


def _decisions(client, x):
    client.fit(Task(1, "fit", {"model": x}, {"seed": 1}))
    return read_decisions(client.directory)
