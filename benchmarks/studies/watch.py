"""What a study asks of a site beside its scores: the loss on its validation images, and what is found how surely.

Each evaluation leaves one JSON file below the run's folder; when the cell is done, they come to a few figures of its
row. Nothing here touches training: the same bits come out with and without it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from polypfed.clients import DetectorClient
from polypfed.clients.frames import Augment, Batches, Frames
from polypfed.clients.isolation import isolated
from polypfed.core.files import write_atomic
from polypfed.core.messages import Evaluation, Task
from polypfed.detect import yolo
from polypfed.detect.metrics import DetectionMetrics, detection_metrics, match

LEAST = 0.001  # confidence from which detections count for average precision, as for a DetectorClient
SURE, FOUND = 0.7, 0.25  # an easy image is found as surely as ML-TN-009 asks; found at all is our operating point
LEVELS = tuple(i / 20 for i in range(1, 20))
_UNCHANGED = Augment(mosaic=0.0, affine=False, hsv=False, flip=False, flip_vertical=False)


class WatchedClient(DetectorClient):
    """A DetectorClient with a folder, who writes down more of each evaluation than its five scores."""

    def evaluate(self, task: Task) -> Evaluation:
        answer = super().evaluate(task)
        with isolated(task.seed, self.threads):
            look = self._look()
        path = Path(str(self.directory)) / "looks" / f"{task.round:04d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(look).encode())
        return answer

    def _score(self, model: Any) -> DetectionMetrics:
        frames = self._open("val")
        found = yolo.predict(model, frames, self.imgsz, LEAST, batch=self.batch)
        self._scored = model, found
        return detection_metrics(found, [frames.boxes(i) for i in range(len(frames))])

    def _look(self) -> dict[str, Any]:
        """Loss per image; of each image how many boxes it has, the best confidence, and the boxes found how surely."""
        model, found = self._scored
        del self._scored
        frames = self._open("val")
        true = [frames.boxes(i) for i in range(len(frames))]
        right = [match(f, t, [0.5])[:, 0] for f, t in zip(found, true, strict=True)]
        sure = [f.confidence[r] for f, r in zip(found, right, strict=True)]
        every, hits = (np.concatenate(each) for each in ([f.confidence for f in found], sure))
        return {
            "loss": _loss(model, frames, self.batch),
            "boxes": [len(t) for t in true],
            "best": [round(f.best, 4) for f in found],
            "hits": {str(level): [int((s >= np.float32(level)).sum()) for s in sure] for level in (FOUND, SURE)},
            "right": [int((hits >= np.float32(c)).sum()) for c in LEVELS],
            "detections": [int((every >= np.float32(c)).sum()) for c in LEVELS],
        }


def _loss(model: Any, frames: Frames, batch: int) -> float:
    """Mean over the images as they are, in evaluation mode; as in training, the sum of its three parts."""
    import torch

    model.eval()
    batches = Batches(frames, np.arange(len(frames)), _UNCHANGED).epoch(batch, np.random.default_rng(0))
    with torch.no_grad():  # not inference_mode: the model that is trained keeps what its loss sets up here
        return sum(float(model.loss(some)[0].sum()) for some in batches) / len(frames)


def watched(client: DetectorClient, folder: Path) -> WatchedClient:
    """`client`, who writes below `folder`/sites/NAME."""
    given = {f.name: getattr(client, f.name) for f in fields(client)}
    return WatchedClient(**given | {"directory": folder / "sites" / client.name})


@dataclass(frozen=True)
class Look:
    """One round's model on the validation images of all sites."""

    loss: float
    boxes: np.ndarray  # (n,) true boxes of each image
    best: np.ndarray  # (n,) highest confidence, right or wrong
    found: np.ndarray  # (n,) bool: it has boxes, and all were found at FOUND or surer
    sure: np.ndarray  # (n,) bool: likewise at SURE
    right: np.ndarray  # (levels,) detections that are right, at each of LEVELS
    detections: np.ndarray  # (levels,)


def looks(folder: Path, sites: Sequence[str]) -> Iterator[Look]:
    """Round by round, from 0, while every site has left one."""
    for number in range(10_000):
        paths = [folder / "sites" / site / "looks" / f"{number:04d}.json" for site in sites]
        if not all(path.exists() for path in paths):
            return
        some = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        boxes = np.concatenate([s["boxes"] for s in some])
        hits = {level: np.concatenate([s["hits"][str(level)] for s in some]) for level in (FOUND, SURE)}
        yield Look(
            loss=float(np.average([s["loss"] for s in some], weights=[len(s["boxes"]) for s in some])),
            boxes=boxes,
            best=np.concatenate([s["best"] for s in some]),
            found=(boxes > 0) & (hits[FOUND] == boxes),
            sure=(boxes > 0) & (hits[SURE] == boxes),
            right=np.sum([s["right"] for s in some], 0),
            detections=np.sum([s["detections"] for s in some], 0),
        )


def figures(rounds: Sequence[Look]) -> dict[str, Any]:
    """Of a row: confidence and loss by round, P, R and F1 at each confidence, two histograms, and what was forgotten.

    Confidences are means of the best one of each validation image that shows a polyp.
    """
    if not rounds:
        return {}
    last = rounds[-1]
    recall = last.right / max(last.boxes.sum(), 1)
    precision = np.where(last.detections > 0, last.right / np.maximum(last.detections, 1), 1.0)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    polyp = last.boxes > 0
    histogram = {
        name: np.histogram(last.best[some], [i / 10 for i in range(11)])[0].tolist()
        for name, some in (("polyp", polyp), ("none", ~polyp))
    }
    return {
        "val_loss": [round(each.loss, 4) for each in rounds],
        "confidence": [round(float(each.best[each.boxes > 0].mean()), 4) for each in rounds],
        "levels": {
            n: [round(float(v), 4) for v in x] for n, x in (("precision", precision), ("recall", recall), ("f1", f1))
        },
        "histogram": histogram,
        "easy": forgotten(rounds),
    }


def forgotten(rounds: Sequence[Look]) -> dict[str, int]:
    """Of the images that an earlier round's model found surely: how many the last one finds, and finds surely.

    Counted over all trained rounds before the last ("images"), and for the first of them that found any ("first").
    """
    earlier, last = rounds[1:-1], rounds[-1]
    ever = np.any([each.sure for each in earlier], 0) if earlier else np.zeros(len(last.boxes), bool)
    first = next((each.sure for each in earlier if each.sure.any()), ever)
    return {
        "images": int(ever.sum()),
        "found": int((ever & last.found).sum()),
        "sure": int((ever & last.sure).sum()),
        "first": int(first.sum()),
        "first_found": int((first & last.found).sum()),
    }
