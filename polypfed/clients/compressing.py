"""Narrower models: cut, fine-tuned on a site's images, and measured against the model they come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polypfed.clients.detector_client import DetectorClient
from polypfed.core.errors import MissingExtraError, PolypfedError
from polypfed.core.messages import Task
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.rundir import save_model
from polypfed.detect.export import architecture, find_template
from polypfed.detect.prune import prune
from polypfed.detect.widths import narrower
from polypfed.select import All


@dataclass(frozen=True)
class Narrowed:
    """One width.

    Attributes:
        arch: its name. parameters: floats of the model.
        cut, tuned: mAP50 before and after fine-tuning.
        ms: median milliseconds of an inference, one thread, by precision; empty without a runtime or a template.
        path: of the model; None for the one it all began with.
    """

    arch: str
    parameters: int
    cut: float
    tuned: float
    ms: dict[str, float]
    path: Path | None = None


def compress(
    spec: ModelSpec,
    x: Vector,
    train: Sequence[Path],
    val: Path,
    widths: Sequence[float],
    out: Path,
    *,
    epochs: int = 10,
    imgsz: int = 192,
    seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Narrowed]:
    """Prune to each of `widths`, fine-tune, save as `out`/ARCH.safetensors, measure; the first row is the given one.

    Args:
        spec, x: the model. train: YOLO folders to tune on. val: YOLO folder that judges.
        widths: shares of the model's channels, each below 1. epochs, imgsz: of the fine-tuning.

    Raises:
        LayoutError: not a YOLOv5. ConfigError: a width is out of range. DataError: images cannot be used.
    """
    arch = architecture(spec)

    def site(name: str) -> DetectorClient:
        return DetectorClient("compress", list(train), val, arch=name, imgsz=imgsz, epochs=epochs, selector=All())

    def score(client: DetectorClient, vector: Vector) -> float:
        return client.evaluate(Task(1, "evaluate", {"model": vector}, {"seed": seed})).metrics["map50"]

    base = score(site(arch), x)
    models = [(arch, spec, x)]
    rows: list[tuple[str, float, float, Path | None]] = [(arch, base, base, None)]
    for width in widths:
        target = narrower(arch, width)
        tell(f"{target}: {epochs} epochs")
        client = site(target)
        layout, start = client.initial()
        cut = start.copy()
        arrays, views = prune(spec.views(x), arch, target), layout.views(cut)
        for name, view in views.items():
            view[...] = arrays[name]
        update = client.fit(Task(1, "fit", {"model": cut}, {"seed": seed}))
        tuned = cut + update.vectors["delta"]
        save_model(out / f"{target}.safetensors", layout, tuned)
        models.append((target, layout, tuned))
        rows.append((target, score(client, cut), score(client, tuned), out / f"{target}.safetensors"))
    times = latencies(models, imgsz, tell)
    return [
        Narrowed(name, layout.size, cut_, tuned_, times.get(name, {}), path)
        for (name, cut_, tuned_, path), (_, layout, _) in zip(rows, models, strict=True)
    ]


def latencies(
    models: Sequence[tuple[str, ModelSpec, Vector]], imgsz: int, tell: Callable[[str], None], turns: int = 40
) -> dict[str, dict[str, float]]:
    """Median milliseconds of the bare inference by name and precision; all take turns. Empty if nothing can run."""
    try:
        candidates = _candidates(models, imgsz)
    except (MissingExtraError, PolypfedError) as error:
        tell(f"no latencies: {error}")
        return {}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in candidates}
    frame = np.random.default_rng(0).integers(0, 256, (imgsz, imgsz, 3), dtype=np.uint8)
    for _ in range(turns):
        for key, detector in candidates.items():
            detector(frame)
            times[key].append(detector.times["invoke"])
    found: dict[str, dict[str, float]] = {}
    for (name, precision), seconds in times.items():
        found.setdefault(name, {})[precision] = 1e3 * float(np.median(seconds))
    return found


def _candidates(models: Sequence[tuple[str, ModelSpec, Vector]], imgsz: int) -> dict[tuple[str, str], Any]:
    from polypfed.detect.litert import LiteRTDetector
    from polypfed.detect.patch import patch
    from polypfed.detect.quantize import quantize

    rng, made = np.random.default_rng(0), {}
    some = [rng.integers(0, 256, (imgsz, imgsz, 3), dtype=np.uint8) for _ in range(8)]
    for name, spec, x in models:
        template, arrays = find_template(name, imgsz), spec.views(x)
        made[name, "fp32"] = LiteRTDetector(patch(template, arrays))
        made[name, "int8"] = LiteRTDetector(quantize(template, arrays, some))
    return made
