"""The device path in figures: frames, cold start, new weights, INT8. Ratios within one run; candidates take turns.

    python benchmarks/edge.py [--work FOLDER] [--data REAL_IMAGES] [--only PART]

Needs the extras `yolo` and `edge`, and a template of yolov5n at 320 and 160 (`polypfed export yolov5n`, once). The
detectors of the INT8 part are trained here, three minutes for each --seed; what is trained stays in --work. Rows are
added to results/edge. The loop on a board, and detection while training runs: edge_loop.py.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from _edge_models import train, ultralytics_export, ultralytics_predict
from _edge_quality import bench_quality
from _edge_table import RESULTS, Table

from polypfed.core.errors import MissingExtraError
from polypfed.core.rundir import load_model, save_model
from polypfed.detect.adapt import letterboxed
from polypfed.detect.export import find_template
from polypfed.detect.litert import LiteRTDetector
from polypfed.detect.patch import patch
from polypfed.detect.quantize import quantize
from polypfed.detect.runtime import interpreter, runtime
from polypfed.detect.template import Template

FRAME = (1024, 1280, 3)
PARTS = ("patch", "frames", "cold", "quality")


def turns(candidates: dict, runs: int, warm: int = 5) -> dict[str, np.ndarray]:
    """(turns, 2) seconds of each, by the wall and by the processor: all in every turn, so that noise hits all alike.

    The order changes from turn to turn: what ran before leaves its own memory in the caches.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    order = np.random.default_rng(0)
    for turn in range(runs + warm):
        for name in order.permutation(list(candidates)):
            start, busy = time.perf_counter(), time.process_time()
            candidates[name]()
            if turn >= warm:
                times[name].append((time.perf_counter() - start, time.process_time() - busy))
    return {name: np.array(values) for name, values in times.items()}


def quickest(values: np.ndarray) -> float:
    """The mean of the quickest tenth, at least three."""
    return float(np.sort(values)[: max(3, len(values) // 10)].mean())


def ratio(times: dict[str, np.ndarray], top: str, bottom: str) -> tuple[float, dict[str, float]]:
    """By processor time, which what else runs on the machine disturbs least; and what the wall clock says of both."""
    wall, cpu = (quickest(times[top][:, k]) / quickest(times[bottom][:, k]) for k in (0, 1))
    found = {"by wall clock": wall}
    for name in (top, bottom):
        found |= {f"{name} p{q} ms": float(np.percentile(times[name][:, 0], q) * 1e3) for q in (50, 99)}
    return cpu, found


def frames(count: int, folder: Path) -> list[np.ndarray]:
    """As large as an endoscope's: real images enlarged, or smooth noise with discs where there are none."""
    import cv2

    found = [cv2.imread(str(path))[..., ::-1] for path in sorted(folder.glob("images/*.jpg"))[:count]]
    if found:
        return [np.ascontiguousarray(cv2.resize(image, FRAME[1::-1], interpolation=cv2.INTER_CUBIC)) for image in found]
    rng, out = np.random.default_rng(0), []
    for _ in range(count):
        small = rng.normal((130, 90, 90), 30, (64, 80, 3)).clip(0, 255).astype(np.uint8)
        frame = cv2.resize(small, FRAME[1::-1], interpolation=cv2.INTER_CUBIC)
        cv2.circle(frame, tuple(int(v) for v in rng.integers(200, 800, 2)), 120, (210, 140, 130), -1)
        out.append(frame)
    return out


def bench_frames(table: Table, fp32: bytes, int8: bytes, runs: int, own: Path | None, some: list[np.ndarray]) -> None:
    import cv2

    cv2.setNumThreads(1)
    detectors = {"fp32": LiteRTDetector(fp32), "int8": LiteRTDetector(int8)}
    turn = iter(range(10**9))
    candidates = {}
    for name, detector in detectors.items():
        candidates[f"{name} frame"] = lambda d=detector: d(some[next(turn) % len(some)])
        candidates[f"{name} invoke"] = detector.invoke
    if own is not None:
        predict = ultralytics_predict(own)
        candidates["ultralytics frame"] = lambda: predict(some[next(turn) % len(some)])
    times = turns(candidates, runs)
    for name, limit in (("fp32", 1.10), ("int8", 1.25)):
        value, more = ratio(times, f"{name} frame", f"{name} invoke")
        claim = f"whole frame / invoke, {name}: processor time"
        table.add("frames", claim, value, f"<= {limit}", value <= limit, **more)
    value, more = ratio(times, "int8 invoke", "fp32 invoke")
    table.add("frames", "int8 invoke / fp32 invoke: processor time", value, "<= 0.35", value <= 0.35, **more)
    if own is None:
        print("ultralytics' own predict: not measured (no export of its own; needs the converter)")
        return
    value, more = ratio(times, "ultralytics frame", "int8 frame")
    claim = "ultralytics' predict on its fp32 tflite / our int8 frame: processor time"
    table.add("frames", claim, value, ">= 3", value >= 3, **more)
    same_boxes(table, fp32, own, some)


def same_boxes(table: Table, fp32: bytes, own: Path, some: list) -> None:
    predict, ours = ultralytics_predict(own), LiteRTDetector(fp32, conf=0.25, resize="linear")
    far = score = 0.0
    count = 0
    for frame in some:
        theirs, found = predict(frame).boxes, ours(frame)
        if len(theirs) != len(found):
            table.add("frames", "boxes as ultralytics' predict", float(len(found) - len(theirs)), "same", False)
            return
        if len(found):
            count += len(found)
            far = max(far, float(np.abs(theirs.xyxy.numpy() - found.xyxy).max()))
            score = max(score, float(np.abs(theirs.conf.numpy() - found.confidence).max()))
    table.add(
        "frames",
        "boxes as ultralytics' predict, linear resize: pixels apart",
        far,
        "<= 0.01",
        far <= 0.01 and count > 0,
        boxes=count,
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
        "cold",
        "cold start to first detection, s (CPU s beside)",
        lean[0],
        "<= 0.3",
        bool(lean[0] <= 0.3),
        cpu_s=float(lean[1]),
    )
    table.add("cold", "memory, MB", lean[2], "<= 120", bool(lean[2] <= 120), torch_mb=float(heavy[2]))
    table.add(
        "cold",
        "cold start / torch's",
        lean[0] / heavy[0],
        "<= 0.125",
        bool(lean[0] / heavy[0] <= 0.125),
        torch_s=float(heavy[0]),
    )


def bench_patch(table: Table, template: Template, arrays: dict) -> None:
    times = turns({"patch": lambda: patch(template, arrays), "load": lambda: interpreter(patch(template, arrays))}, 25)
    low, both = (quickest(times[name][:, 0]) * 1e3 for name in ("patch", "load"))
    more = {"CPU ms": quickest(times["patch"][:, 1]) * 1e3, "with loading, ms": both}
    table.add("patch", "new weights into fp32, ms", low, "<= 20", low <= 20, **more)
    rng = np.random.default_rng(0)
    some = [rng.integers(0, 256, (template.manifest.imgsz,) * 2 + (3,), dtype=np.uint8) for _ in range(32)]
    start = time.process_time()
    quantize(template, arrays, some)
    value = time.process_time() - start
    table.add("patch", "new weights into int8, 32 frames, CPU s", value, "<= 2", value <= 2)
    error = torch_error(template, arrays)
    table.add("patch", "patched raw heads against torch, largest difference", error, "<= 1e-4", error <= 1e-4)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/bench/edge"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("POLYPFED_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, action="append", help="of a detector trained for the INT8 part")
    parser.add_argument("--only", choices=PARTS, action="append")
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    table, parts = Table(options.out), options.only or list(PARTS)
    print(runtime()[1], f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if (options.data / "real").is_dir():
        seeds, data = options.seed or [1], options.data.absolute()
        trained = [train(work, data, 160, options.epochs, seed) for seed in seeds]
    else:
        print("real images not found: random weights, no INT8 quality")
        from polypfed.clients import DetectorClient

        trained = [work / "random.safetensors"]
        save_model(trained[0], *DetectorClient("bench", ".").initial())
        parts = [p for p in parts if p != "quality"]
    models = [spec.views(vector) for spec, vector in map(load_model, trained)]
    arrays, template = models[0], find_template("yolov5n", 320)
    fp32 = patch(template, arrays)
    (work / "fp32.tflite").write_bytes(fp32)
    if "patch" in parts:
        bench_patch(table, template, arrays)
    if "frames" in parts:
        int8 = quantize(template, arrays, letterboxed(frames(32, work / "calibrate"), 320))
        own = ultralytics_export(trained[0], work, 320)
        bench_frames(table, fp32, int8, options.runs, own, frames(8, work / "judge"))
    if "cold" in parts:
        bench_cold(table, work / "fp32.tflite")
    if "quality" in parts:
        bench_quality(table, find_template("yolov5n", 160), models, work)


if __name__ == "__main__":
    try:
        main()
    except MissingExtraError as missing:
        print(f"not measured: {missing}")
