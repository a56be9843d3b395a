"""Models that the device benchmark needs: one trained for a few minutes, and what ultralytics makes of it."""

import hashlib
import os
import subprocess
from pathlib import Path

import numpy as np

from polypfed.core.rundir import save_model
from polypfed.detect.export import Converter


def ultralytics_export(model: Path, work: Path, imgsz: int) -> Path | None:
    """What ultralytics itself makes of the same weights; None without the converter."""
    own = work / f"own-{hashlib.sha256(model.read_bytes()).hexdigest()[:12]}"
    found = list(own.glob("**/*.tflite"))
    if found:
        return found[0]
    converter = Converter()
    if not converter.ready:
        return None
    program = f"""
import torch
from polypfed.core.rundir import load_model
from polypfed.detect import yolo
from pathlib import Path
from ultralytics import YOLO
spec, vector = load_model(Path({str(model)!r}))
wrap = YOLO("yolov5n.yaml", task="detect")
net = yolo.build("yolov5n")
net.load_state_dict({{n: torch.from_numpy(a.copy()) for n, a in spec.views(vector).items()}}, strict=False)
net.args = dict(vars(net.args))
net.task, net.pt_path = "detect", "own.pt"
wrap.model = net
print(wrap.export(format="tflite", imgsz={imgsz}, nms=False, verbose=False))
"""
    own.mkdir(exist_ok=True)
    environment = os.environ | {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "PYTHONPATH": os.getcwd()}
    environment["YOLO_CONFIG_DIR"] = str(work)
    done = subprocess.run(
        [str(converter.python), "-c", program], cwd=own, env=environment, capture_output=True, text=True
    )
    found = list(own.glob("**/*.tflite"))
    if not found:
        print("ultralytics' own export failed:", done.stderr.strip().splitlines()[-1:])
    return found[0] if found else None


def ultralytics_predict(path: Path):
    from polypfed.detect.offline import ultralytics

    ultralytics()
    import torch
    from ultralytics import YOLO

    torch.set_num_threads(1)
    model = YOLO(str(path.parent if path.parent.suffix == "" and "litert" in path.parent.name else path), task="detect")
    return lambda frame: model.predict(frame[..., ::-1], imgsz=320, conf=0.25, verbose=False, device="cpu")[0]


def train(work: Path, data: Path, imgsz: int, epochs: int, seed: int = 1) -> Path:
    """A detector of Kvasir-SEG from COCO weights, some three minutes; kept in `work`."""
    import shutil

    from polypfed.clients import DetectorClient
    from polypfed.core.messages import Task
    from polypfed.select import All

    out, source = work / f"trained-{imgsz}-{epochs}-{seed}.safetensors", data / "real" / "kvasir_seg"
    names = sorted(p.stem for p in (source / "images").glob("*.jpg"))
    np.random.default_rng(0).shuffle(names)
    for part, some in (("train", names[:320]), ("calibrate", names[320:352]), ("judge", names[352:])):
        for sub, suffix in (("images", "jpg"), ("labels", "txt")):
            folder = work / part / sub
            if not folder.exists():
                folder.mkdir(parents=True)
                for name in some:
                    shutil.copy(source / sub / f"{name}.{suffix}", folder)
    if not out.exists():
        client = DetectorClient(
            "bench",
            work / "train",
            imgsz=imgsz,
            epochs=epochs,
            selector=All(),
            warm_start=data / "weights" / "yolov5n_coco_fp16.npz",
        )
        spec, x = client.initial()
        update = client.fit(Task(1, "fit", {"model": x}, {"seed": seed}))
        save_model(out, spec, x + update.vectors["delta"])
    return out


def widened(narrow: Path, out: Path, noise: float = 0.02) -> Path:
    """COCO weights of yolov5n as a start for yolov5s, which is as deep and twice as wide.

    Every channel twice, what it is fed by halved: the same function (Net2Wider: Chen et al., Net2Net, 2016). `noise`
    tells the twins apart, as a share of each weight.
    """
    from polypfed.detect import yolo

    rng, shapes = np.random.default_rng(0), {n: tuple(t.shape) for n, t in yolo.build("yolov5s").state_dict().items()}
    made: dict[str, np.ndarray] = {}
    with np.load(narrow, allow_pickle=False) as archive:
        for name in sorted(set(archive.files) & set(shapes)):
            array = archive[name]
            if array.ndim == 0 or array.dtype.kind != "f":
                continue
            array = array.astype(np.float32)
            for axis, (has, needs) in enumerate(zip(array.shape[:2], shapes[name][:2], strict=True)):
                if needs == 2 * has:
                    array = np.repeat(array, 2, axis) / (2 if axis == 1 else 1)
            if array.ndim == 4:
                array = array * rng.normal(1, noise, array.shape)
            if array.shape == shapes[name]:
                made[name] = array.astype(np.float32)
    np.savez(out, **made)
    return out
