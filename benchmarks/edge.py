"""The device path in figures: frames, cold start, new weights, INT8. Ratios within one run; candidates take turns.

    python benchmarks/edge.py [--work FOLDER] [--data REAL_IMAGES] [--only PART]

Needs the extras `yolo` and `edge`, and a template of yolov5n at 320 and 160 (`polypfed export yolov5n`, once). The
detector of the INT8 part is trained here for three minutes; what is trained stays in --work.
The loop on a board, and detection while training runs: edge_loop.py.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from _edge_models import train, ultralytics_export, ultralytics_predict

from polypfed.core.errors import MissingExtraError
from polypfed.core.rundir import load_model, save_model
from polypfed.detect.adapt import ORDER, adapt, letterboxed
from polypfed.detect.agreement import compare
from polypfed.detect.export import find_template
from polypfed.detect.litert import LiteRTDetector
from polypfed.detect.patch import patch
from polypfed.detect.quantize import calibrate, quantize, quantized
from polypfed.detect.runtime import interpreter, runtime
from polypfed.detect.scoring import best_confidence
from polypfed.detect.template import Template

FRAME = (1024, 1280, 3)
PARTS = ("patch", "frames", "cold", "quality")


class Table:
    """Rows of (claim, figure, limit, whether it holds), printed as they come and written as JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, []

    def add(self, claim: str, value: float, limit: str, good: bool | None = None, **more: object) -> None:
        self.rows.append({"claim": claim, "value": value, "limit": limit, "holds": good, **more})
        mark = {True: "yes", False: "NO", None: ""}[good]
        extra = "  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in more.items())
        print(f"{claim:<66} {value:>9.4g}  {limit:<10} {mark:<4} {extra}", flush=True)
        self.path.write_text("".join(json.dumps(r) + "\n" for r in self.rows))


def turns(candidates: dict, runs: int, warm: int = 5) -> dict[str, np.ndarray]:
    """Seconds of each candidate in each turn: all of them in every turn, so that noise hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(runs + warm):
        for name, act in candidates.items():
            start = time.perf_counter()
            act()
            if turn >= warm:
                times[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in times.items()}


def cpu_seconds(act) -> float:
    start = time.process_time()
    act()
    return time.process_time() - start


def ratio(times: dict[str, np.ndarray], top: str, bottom: str) -> float:
    """Of the quickest tenths: what else runs on the machine makes both slower, seldom both at once."""
    quick = {name: np.sort(values)[: max(3, len(values) // 10)].mean() for name, values in times.items()}
    return float(quick[top] / quick[bottom])


def frames(count: int) -> list[np.ndarray]:
    """Smooth noise with discs, as large as an endoscope's frames."""
    import cv2

    rng, out = np.random.default_rng(0), []
    for _ in range(count):
        small = rng.normal((130, 90, 90), 30, (64, 80, 3)).clip(0, 255).astype(np.uint8)
        frame = cv2.resize(small, FRAME[1::-1], interpolation=cv2.INTER_CUBIC)
        cv2.circle(frame, tuple(int(v) for v in rng.integers(200, 800, 2)), 120, (210, 140, 130), -1)
        out.append(frame)
    return out


def bench_frames(table: Table, fp32: bytes, int8: bytes, runs: int, own: Path | None) -> None:
    some = frames(8)
    conf = 0.25
    detectors = {"fp32": LiteRTDetector(fp32, conf=conf), "int8": LiteRTDetector(int8, conf=conf)}
    turn = iter(range(10**9))
    candidates = {}
    for name, detector in detectors.items():
        candidates[f"{name} frame"] = lambda d=detector: d(some[next(turn) % 8])
        candidates[f"{name} invoke"] = detector.invoke
    if own is not None:
        predict = ultralytics_predict(own)
        candidates["ultralytics frame"] = lambda: predict(some[next(turn) % 8])
    times = turns(candidates, runs)
    tails = {k: {f"p{q}_ms": float(np.percentile(v, q) * 1e3) for q in (50, 99)} for k, v in times.items()}
    for name, limit in (("fp32", 1.10), ("int8", 1.25)):
        value = ratio(times, f"{name} frame", f"{name} invoke")
        table.add(
            f"whole frame / invoke, {name}, 320, 1 thread",
            value,
            f"<= {limit}",
            value <= limit,
            **tails[f"{name} frame"],
        )
    value = ratio(times, "int8 invoke", "fp32 invoke")
    table.add("int8 invoke / fp32 invoke", value, "<= 0.35", value <= 0.35, **tails["fp32 invoke"])
    if own is None:
        print("ultralytics' own predict: not measured (no export of its own; needs the converter)")
        return
    value = ratio(times, "ultralytics frame", "int8 frame")
    table.add(
        "ultralytics predict on its fp32 tflite / our int8 frame",
        value,
        ">= 3",
        value >= 3,
        **tails["ultralytics frame"],
    )
    same_boxes(table, fp32, own, some)


def same_boxes(table: Table, fp32: bytes, own: Path, some: list) -> None:
    predict, ours = ultralytics_predict(own), LiteRTDetector(fp32, conf=0.25, resize="linear")
    far = score = 0.0
    count = 0
    for frame in some:
        theirs, found = predict(frame).boxes, ours(frame)
        if len(theirs) != len(found):
            table.add("boxes as ultralytics' predict", float(len(found) - len(theirs)), "same", False)
            return
        if len(found):
            count += len(found)
            far = max(far, float(np.abs(theirs.xyxy.numpy() - found.xyxy).max()))
            score = max(score, float(np.abs(theirs.conf.numpy() - found.confidence).max()))
    table.add(
        "boxes as ultralytics' predict, linear resize: pixels apart",
        far,
        "<= 0.01",
        far <= 0.01,
        count=count,
        score=score,
    )


_COLD = """
import sys, time
begin = float(sys.argv[1])
import numpy as np
frame = np.zeros((1024, 1280, 3), np.uint8)
if sys.argv[2] == "lean":
    from polypfed.detect.litert import LiteRTDetector
    LiteRTDetector(sys.argv[3])(frame)
else:
    from polypfed.detect import yolo
    yolo.predict(yolo.build("yolov5n"), [frame], 320)
took = time.clock_gettime(time.CLOCK_MONOTONIC) - begin
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # rusage would count the parent
print(took, time.process_time(), int(peak.split()[1]) / 1024)
"""


def bench_cold(table: Table, path: Path) -> None:
    seen: dict[str, list[list[float]]] = {"lean": [], "torch": []}
    for _ in range(3):
        for kind, rows in seen.items():
            begin = time.clock_gettime(time.CLOCK_MONOTONIC)
            command = [sys.executable, "-c", _COLD, str(begin), kind, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
            rows.append([float(v) for v in done.stdout.split()[-3:]])
    lean, heavy = (np.min(rows, axis=0) for rows in seen.values())
    table.add(
        "cold start to first detection, s (CPU s beside)", lean[0], "<= 0.3", bool(lean[0] <= 0.3), cpu_s=float(lean[1])
    )
    table.add("memory, MB", lean[2], "<= 120", bool(lean[2] <= 120), torch_mb=float(heavy[2]))
    table.add(
        "cold start / torch's",
        lean[0] / heavy[0],
        "<= 0.125",
        bool(lean[0] / heavy[0] <= 0.125),
        torch_s=float(heavy[0]),
    )


def bench_patch(table: Table, template: Template, arrays: dict) -> None:
    times = turns({"patch": lambda: patch(template, arrays), "load": lambda: interpreter(patch(template, arrays))}, 25)
    low, both = (float(np.sort(times[name])[:3].mean() * 1e3) for name in ("patch", "load"))
    cpu = min(cpu_seconds(lambda: patch(template, arrays)) for _ in range(10)) * 1e3
    table.add("new weights into fp32, ms", low, "<= 20", low <= 20, cpu_ms=cpu, with_load_ms=both)
    rng = np.random.default_rng(0)
    some = [rng.integers(0, 256, (template.manifest.imgsz,) * 2 + (3,), dtype=np.uint8) for _ in range(32)]
    start = time.process_time()
    quantize(template, arrays, some)
    value = time.process_time() - start
    table.add("new weights into int8, 32 frames, CPU s", value, "<= 2", value <= 2)
    error = torch_error(template, arrays)
    table.add("patched raw heads against torch, largest difference", error, "<= 1e-4", error <= 1e-4)


def torch_error(template: Template, arrays: dict) -> float:
    import torch

    from polypfed.detect import yolo
    from polypfed.detect.export.worker import RawHeads

    model = yolo.build(template.manifest.arch).eval()
    model.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in arrays.items()}, strict=False)
    square = np.random.default_rng(0).integers(0, 256, (template.manifest.imgsz,) * 2 + (3,), dtype=np.uint8)
    with torch.no_grad():
        wanted = RawHeads(model)(torch.from_numpy(square[None] / np.float32(255)).permute(0, 3, 1, 2))
    got = LiteRTDetector(patch(template, arrays)).raw(square)
    return max(float(np.abs(g - w.permute(0, 2, 3, 1).numpy()).max()) for g, w in zip(got, wanted, strict=True))


def bench_quality(table: Table, template: Template, arrays: dict, work: Path) -> None:
    from polypfed.data import open_image, read_yolo

    judge = read_yolo(work / "judge")
    images, true = [open_image(s.image) for s in judge], [s.boxes for s in judge]
    own = [open_image(s.image) for s in read_yolo(work / "calibrate")]
    squares, float_model = letterboxed(own, template.manifest.imgsz), patch(template, arrays)

    def run(model: bytes) -> list:
        return LiteRTDetector(model, conf=0.001, candidates=None).detect(images)

    exact = run(float_model)
    models = {p: patch(template, arrays, p) for p in ("fp16", "dynamic")}
    models["int8"] = quantize(template, arrays, squares)
    for name, model in models.items():
        seen = compare(exact, run(model), 0.7, true)
        about = {"diff_p99": seen.difference, "max_diff": seen.largest, "boxes": seen.boxes, "frames": seen.frames}
        table.add(f"{name}: agreement on hard/easy at 0.7", seen.agreement, ">= 0.98", seen.agreement >= 0.98, **about)
        table.add(f"{name}: AP50 lost", float(seen.ap50 or 0), "<= 0.01", bool((seen.ap50 or 0) <= 0.01))
    pair = [LiteRTDetector(m, conf=0.001) for m in (models["int8"], float_model)]
    best, twice = best_confidence(pair[0], images, pair[1], 0.7, 0.1)
    same = float((np.array([d.best < 0.7 for d in exact]) == (best < np.float32(0.7))).mean())
    table.add(
        "int8, near the threshold fp32: agreement", same, ">= 0.98", same >= 0.98, asked_twice=twice / len(images)
    )
    average: dict[str, tuple[float, float]] = {}
    for square in squares:
        for key, (low, high) in calibrate(float_model, [square]).items():
            old = average.get(key, (low, high))
            average[key] = (0.95 * old[0] + 0.05 * low, 0.95 * old[1] + 0.05 * high)
    failing = compare(exact, run(quantized(template, arrays, average)), 0.7, true)
    table.add(
        "the usual (moving average) calibration: agreement", failing.agreement, "fails", None, ap50_lost=failing.ap50
    )
    table.add("hard frames by fp32", float(np.mean([d.best < 0.7 for d in exact])), "", None)
    done = adapt(template, arrays, images, calibration=own, true=true, order=ORDER)
    print(f"the gate takes {done}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/bench/edge"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("POLYPFED_DATA", "../shared/data")))
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", choices=PARTS, action="append")
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    table, parts = Table(work / "edge.jsonl"), options.only or list(PARTS)
    print(runtime()[1], f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if (options.data / "real").is_dir():
        trained = train(work, options.data.absolute(), 160, options.epochs)
        spec, vector = load_model(trained)
    else:
        print("real images not found: random weights, no INT8 quality")
        from polypfed.clients import DetectorClient

        spec, vector = DetectorClient("bench", ".").initial()
        trained = work / "random.safetensors"
        save_model(trained, spec, vector)
        parts = [p for p in parts if p != "quality"]
    arrays, template = spec.views(vector), find_template("yolov5n", 320)
    fp32 = patch(template, arrays)
    (work / "fp32.tflite").write_bytes(fp32)
    if "patch" in parts:
        bench_patch(table, template, arrays)
    int8 = quantize(template, arrays, letterboxed(frames(32), 320))
    if "frames" in parts:
        bench_frames(table, fp32, int8, options.runs, ultralytics_export(trained, work, 320))
    if "cold" in parts:
        bench_cold(table, work / "fp32.tflite")
    if "quality" in parts:
        bench_quality(table, find_template("yolov5n", 160), arrays, work)


if __name__ == "__main__":
    try:
        main()
    except MissingExtraError as missing:
        print(f"not measured: {missing}")
