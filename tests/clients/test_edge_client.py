"""EdgeClient: what it refuses; and, where a template of yolov5n is in the cache, that it chooses as fp32 would."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="install polypfed[yolo]")
pytest.importorskip("ai_edge_litert", reason="no TFLite runtime: install polypfed[edge]")

from polypfed.clients import DetectorClient
from polypfed.clients.edge_client import EdgeClient
from polypfed.core.errors import ConfigError
from polypfed.core.messages import Task
from polypfed.data import open_image, read_yolo
from polypfed.data.store import SampleStore, Vault
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


def _kept(tmp_path, frames: int):
    """A store of frames with discs; what each shows, by id."""
    folder = write_site(tmp_path / "seen", frames, negatives=0)
    store = SampleStore(tmp_path / "store", Vault(tmp_path / "key"))
    shown = {}
    for sample in read_yolo(folder):
        shown[store.add(open_image(sample.image), 0.1, "round-0000", name=sample.id)] = sample.boxes
    return store, shown


def test_what_nobody_labelled_is_not_trained_on(tmp_path):
    """From the encrypted store, and what is labelled meanwhile is taken up in the next round."""
    store, shown = _kept(tmp_path, 6)
    settings = {"imgsz": 64, "batch": 2, "template": MINI, "selector": All(), "store": tmp_path / "store"}
    client = EdgeClient("a", [], key=tmp_path / "key", **settings)
    x = client.initial()[1]
    update = client.fit(Task(1, "fit", {"model": x}, {"seed": 1}))
    assert (update.weight, update.metrics["images"]) == (0, 0)
    assert not update.vectors["delta"].any()
    for frame in list(shown)[:4]:
        store.label(frame, shown[frame], "dr")
    store.label(list(shown)[4], shown[list(shown)[4]], "round-0000", pseudo=True)
    update = client.fit(Task(2, "fit", {"model": x}, {"seed": 1}))
    assert (update.weight, update.metrics["images"]) == (4, 4)
    assert update.vectors["delta"].any()
    assert "pseudo" not in update.metrics
    assert not list((tmp_path / "store").rglob("*.png"))
    with pytest.raises(ConfigError, match="a store needs a key"):
        EdgeClient("a", [], **settings)


@pytest.mark.skipif(not TEMPLATE.is_file(), reason="no template: polypfed export yolov5n --image-size 64")
def test_pseudo_labels_are_a_policy_that_the_record_shows(tmp_path):
    """An untrained model gives every frame some 0.002; a policy of 0.001 takes it, one of 0.9 does not."""
    store, shown = _kept(tmp_path, 4)
    first = next(iter(shown))
    store.label(first, shown[first], "dr")
    settings = {"imgsz": 64, "batch": 2, "template": TEMPLATE, "selector": Below(0.9), "store": tmp_path / "store"}
    for policy, wanted in ((0.9, 0), (0.001, 3)):
        client = EdgeClient("a", [], key=tmp_path / "key", pseudo=policy, **settings)
        update = client.fit(Task(1, "fit", {"model": client.initial()[1]}, {"seed": 1}))
        assert (update.weight, update.metrics["pseudo"]) == (1 + wanted, wanted)
    assert {r.label for r in store.records()} == {"human", "pseudo"}
    assert (store.boxes(first) == shown[first]).all()
    assert all(r.model.startswith("round-0000-") for r in store.records())


def _decisions(client, x):
    client.fit(Task(1, "fit", {"model": x}, {"seed": 1}))
    return read_decisions(client.directory)
