"""EdgeClient: what it refuses; and, where a template of yolov5n is in the cache, that it chooses as fp32 would."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="install polypfed[yolo]")
pytest.importorskip("ai_edge_litert", reason="no TFLite runtime: install polypfed[edge]")

from polypfed.clients import DetectorClient
from polypfed.clients.edge_client import EdgeClient
from polypfed.core.errors import ConfigError
from polypfed.core.messages import Task
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
def test_near_the_threshold_its_scores_are_those_of_fp32(tmp_path):
    """An untrained model gives every frame its prior, so all are near a threshold of 0.05 and asked of fp32 again."""
    folder = write_site(tmp_path / "a", 24)
    settings = {"imgsz": 64, "epochs": 1, "batch": 8, "selector": Below(0.05)}
    plain = DetectorClient("a", folder, directory=tmp_path / "one", **settings)
    edge = EdgeClient("a", folder, directory=tmp_path / "two", template=TEMPLATE, **settings)
    x = plain.initial()[1]
    wanted, got = (_decisions(client, x) for client in (plain, edge))
    assert [d.confidence for d in got] == pytest.approx([d.confidence for d in wanted], abs=1e-6)
    assert [d.image for d in got] == [d.image for d in wanted]
    update = edge.fit(Task(1, "fit", {"model": x}, {"seed": 1}))
    assert update.metrics["edge_bits"] in (8, 16, 32)
    assert update.metrics["edge_twice"] in (0, 24)
    assert update.metrics["kept"] == 24


def _decisions(client, x):
    client.fit(Task(1, "fit", {"model": x}, {"seed": 1}))
    return read_decisions(client.directory)
