"""INT8 against fp32 on real images, by models trained with several seeds: one alone cannot tell chance from bias."""

from pathlib import Path

import numpy as np
from _edge_table import Table

from polypfed.data import open_image, read_yolo
from polypfed.detect.adapt import ORDER, adapt, letterboxed
from polypfed.detect.agreement import Agreement, compare
from polypfed.detect.litert import LiteRTDetector
from polypfed.detect.patch import patch
from polypfed.detect.quantize import calibrate, quantize, quantized
from polypfed.detect.scoring import best_confidence
from polypfed.detect.template import Template

AVERAGE = "int8 by the usual calibration (a moving average)"
Seen = dict[str, dict[str, float]]


def bench_quality(table: Table, template: Template, models: list[dict], work: Path) -> None:
    """One row per precision, mean over models."""
    judge, calibration = read_yolo(work / "judge"), read_yolo(work / "calibrate")
    images, true = [open_image(s.image) for s in judge], [s.boxes for s in judge]
    own = [open_image(s.image) for s in calibration]
    found = [judged(template, arrays, images, true, own) for arrays in models]
    for name in found[0]:
        some = [seen[name] for seen in found]
        mean = {key: float(np.mean([s[key] for s in some])) for key in some[0]}
        agreed = mean.pop("agreement")
        mean["standard error"] = float(np.sqrt(agreed * (1 - agreed) / len(images) / len(models)))
        each = " ".join(f"{s['agreement']:.3f}" for s in some)
        good = None if name == AVERAGE else agreed >= 0.98
        limit = "fails" if name == AVERAGE else ">= 0.98"
        table.add("quality", f"{name}: agreement on hard/easy at 0.7", agreed, limit, good, **mean, each=each)
        if "AP50 lost" in mean and name != AVERAGE:
            lost = [s["AP50 lost"] for s in some]
            each = " ".join(f"{v:.3f}" for v in lost)
            table.add("quality", f"{name}: AP50 lost", float(np.mean(lost)), "<= 0.01", max(lost) <= 0.01, each=each)
    for arrays in models:
        print("the gate takes", adapt(template, arrays, images, calibration=own, true=true, order=ORDER))


def judged(template: Template, arrays: dict, images: list, true: list, own: list) -> Seen:
    """What each precision of one model does."""
    squares, float_model = letterboxed(own, template.manifest.imgsz), patch(template, arrays)

    def run(model: bytes) -> list:
        return LiteRTDetector(model, conf=0.001, candidates=None).detect(images)

    exact = run(float_model)
    hard = np.array([d.best for d in exact]) < np.float32(0.7)
    models = {p: patch(template, arrays, p) for p in ("fp16", "dynamic")}
    models["int8"] = quantize(template, arrays, squares)
    found = {name: _plain(compare(exact, run(model), 0.7, true)) for name, model in models.items()}
    pair = [LiteRTDetector(m, conf=0.001) for m in (models["int8"], float_model)]
    best, twice = best_confidence(pair[0], images, pair[1], 0.7, 0.1)
    same = float((hard == (best < np.float32(0.7))).mean())
    found["int8, near 0.7 fp32 again"] = {"agreement": same, "asked twice": twice / len(images)}
    found[AVERAGE] = _plain(compare(exact, run(_averaged(template, arrays, float_model, squares)), 0.7, true))
    near = float((np.abs(np.array([d.best for d in exact]) - 0.7) <= 0.1).mean())
    found["int8"] |= {"hard by fp32": float(hard.mean()), "within 0.1 of 0.7": near}
    return found


def _averaged(template: Template, arrays: dict, float_model: bytes, squares: list) -> bytes:
    average: dict[str, tuple[float, float]] = {}
    for square in squares:
        for key, (low, high) in calibrate(float_model, [square]).items():
            old = average.get(key, (low, high))
            average[key] = (0.95 * old[0] + 0.05 * low, 0.95 * old[1] + 0.05 * high)
    return quantized(template, arrays, average)


def _plain(seen: Agreement) -> dict[str, float]:
    return {
        "agreement": seen.agreement,
        "difference p99": seen.difference,
        "boxes found again": seen.boxes,
        "AP50 lost": float(seen.ap50 or 0),
    }
