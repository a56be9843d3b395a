"""The adapter around ultralytics: build a YOLOv5, YOLOv8 or YOLO11 offline, run it, read its confidences.

All three have the same head, and so the same loss and decoding: boxes as distributions over 16 bins, one class score.
`yolov5n.yaml` of today's ultralytics is the anchor-free variant too.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from polypfed.core.errors import ConfigError
from polypfed.detect.detections import Detections
from polypfed.detect.letterbox import Pixels, Placement, shrink, square
from polypfed.detect.offline import ultralytics
from polypfed.detect.widths import ARCHITECTURES, parts

__all__ = ["ARCHITECTURES", "batches", "best_confidence", "build", "check_size", "group", "layers", "predict"]
STRIDE = 32
_DETECTIONS_PER_IMAGE = 300


def build(arch: str = "yolov5n", seed: int = 0, prior: float = 0.002, bn_momentum: float = 0.1) -> Any:
    """A one-class detector with random weights, from the architecture file inside the ultralytics wheel.

    Args:
        arch: one of `ARCHITECTURES`, or a narrower one such as "yolov5n-0.75".
        seed: of the random weights; the global generators are left as they were.
        prior: confidence that an untrained model gives to every cell; ultralytics starts at 0.0008 to 0.012 by level.
        bn_momentum: share of a batch in BatchNorm's running statistics. ultralytics' 0.03 forgets over 33 steps,
            more than a short round has, and the statistics then lag behind the weights.

    Returns:
        `ultralytics.nn.tasks.DetectionModel` in training mode, float32, on the CPU, `model.loss(batch)` ready.

    Raises:
        ConfigError: unknown architecture.
        MissingExtraError: the extra `yolo` is not installed.
    """
    size, share = parts(arch)
    if not 0 < prior < 1:
        raise ConfigError(f"a prior lies between 0 and 1, got {prior}", where="prior")
    ultralytics()
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    plan = yaml_model_load(f"{size}.yaml")  # type: ignore[no-untyped-call]
    scale = plan["scales"][plan["scale"]]
    plan["scales"][plan["scale"]] = [scale[0], scale[1] * share, *scale[2:]]
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        model: Any = DetectionModel(plan, nc=1, verbose=False)  # type: ignore[no-untyped-call]
    for level in model.model[-1].cv3:
        torch.nn.init.constant_(level[-1].bias, math.log(prior / (1 - prior)))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = bn_momentum
    model.args = get_cfg(overrides={"task": "detect", "mode": "train"})
    model.names = {0: "polyp"}
    return model


def layers(model: Any) -> int:
    """Number of top-level layers; the last one is the detection head."""
    return len(model.model)


def group(model: Any) -> Callable[[str], str]:
    """By an array's name whether it is of the "backbone", the "neck" or the "head".

    The head is the last module, the backbone as many as its architecture file lists; no layer number is assumed.
    """
    backbone, head = len(model.yaml["backbone"]), len(model.model) - 1

    def part(name: str) -> str:
        layer = int(name.split(".")[1])
        return "head" if layer == head else "backbone" if layer < backbone else "neck"

    return part


def batches(images: Sequence[Pixels], imgsz: int, batch: int) -> Iterator[tuple[torch.Tensor, list[Placement]]]:
    """Images as (b, 3, imgsz, imgsz) float32 in [0, 1], channels last in memory, which the CPU kernels like best."""
    check_size(imgsz)
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        pixels = np.empty((len(some), imgsz, imgsz, 3), np.uint8)
        where = [
            square(shrink(image, imgsz), pixels[i], (image.shape[1], image.shape[0])) for i, image in enumerate(some)
        ]
        yield torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255), where


def check_size(imgsz: int) -> None:
    """Raise a ConfigError unless `imgsz` is a multiple of 32 of at least 32."""
    if type(imgsz) is not int or imgsz < STRIDE or imgsz % STRIDE:
        raise ConfigError(f"the image size must be a multiple of {STRIDE}, got {imgsz!r}", where="imgsz")


def predict(
    model: Any, images: Sequence[Pixels], imgsz: int, conf: float = 0.001, iou: float = 0.7, batch: int = 16
) -> list[Detections]:
    """Detect in each image.

    Args:
        model: as `build` returns it. It is put into evaluation mode and left there.
        images: (h, w, 3) uint8 RGB each, any shapes.
        imgsz: side of the square the model sees, a multiple of 32.
        conf: least confidence; 0.001 for average precision, 0.25 to look at.
        iou: overlap above which the weaker of two detections goes.
        batch: images per forward pass.

    Returns:
        One `Detections` per image, in pixels of that image.
    """
    answers: list[Detections] = []
    for outputs, where in _forward(model, images, imgsz, batch):
        answers += [_detections(rows, place) for rows, place in zip(_suppress(outputs, conf, iou), where, strict=True)]
    return answers


def best_confidence(model: Any, images: Sequence[Pixels], imgsz: int, batch: int = 16) -> np.ndarray[Any, Any]:
    """Highest confidence in each image, (n,) float32: what `predict(...)[i].best` is, without suppression."""
    best = [outputs[:, 4].amax(1).numpy() for outputs, _ in _forward(model, images, imgsz, batch)]
    found = np.concatenate(best) if best else np.zeros(0, np.float32)
    return np.nan_to_num(found, nan=0.0).astype(np.float32)


def _forward(
    model: Any, images: Sequence[Pixels], imgsz: int, batch: int
) -> Iterator[tuple[torch.Tensor, list[Placement]]]:
    model.eval()
    for tensor, where in batches(images, imgsz, batch):
        with torch.inference_mode():
            outputs = model(tensor)[0]  # (b, 5, cells): centre x, centre y, width, height, confidence; pixels
        yield outputs, where


def _suppress(outputs: torch.Tensor, conf: float, iou: float) -> list[torch.Tensor]:
    from ultralytics.utils.nms import non_max_suppression

    # By default it stops after two seconds and drops the rest: a slow moment would change the answer.
    rows: list[torch.Tensor] = non_max_suppression(
        outputs, conf, iou, nc=1, max_det=_DETECTIONS_PER_IMAGE, max_time_img=math.inf
    )
    return rows


def _detections(rows: torch.Tensor, place: Placement) -> Detections:
    found = rows.numpy()
    return Detections(place.back(found[:, :4]), found[:, 4])
