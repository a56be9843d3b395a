"""What a call into `DetectorClient.fit` costs beside the training in it.

    python benchmarks/fit_cost.py [--size 128] [--repeats 9]

One epoch on 100 synthetic images, batch 16, one thread, all images kept (no scoring). The peer is a bare PyTorch loop
over the same model, loss, augmented batches, gradient clipping and optimiser. Both take turns in one process, the first
pair is dropped; CPU seconds. Goal: at most 5 %.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _common import about, append, spread, tell

from polypfed.clients import DetectorClient
from polypfed.clients.frames import Augment, Batches, Frames
from polypfed.clients.isolation import isolated
from polypfed.core.messages import Task
from polypfed.core.seeds import generator
from polypfed.data import open_partition
from polypfed.data.synth import synth
from polypfed.detect import yolo
from polypfed.select import All


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", type=int, default=128)
    options.add_argument("--repeats", type=int, default=9)
    options.add_argument("--out", type=Path, default=Path("runs/bench/fit_cost.jsonl"))
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = measure(Path(folder) / "data", given.size, given.repeats)
    ratios = sorted(fit / plain for fit, plain in pairs)
    row: dict[str, Any] = {
        "size": given.size,
        "fit_s": median(f for f, _ in pairs),
        "plain_s": median(p for _, p in pairs),
        "ratio": median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "repeats": len(pairs),
        "load": os.getloadavg()[0],
    }
    where = about("fit_cost", ("polypfed", "numpy", "torch", "ultralytics"))
    append(given.out, [where | row])
    heads = "| size | fit CPU s | plain loop CPU s | ratio, median (range) | goal |\n|---|---|---|---|---|"
    seconds = f"{row['fit_s']:.2f} | {row['plain_s']:.2f}"
    tell(given.out, where, f"{heads}\n| {given.size} | {seconds} | {spread(ratios)} | 1.05 |")


def measure(data: Path, size: int, repeats: int) -> list[tuple[float, float]]:
    """(CPU seconds of fit, CPU seconds of the bare loop), in pairs."""
    synth(data, sites=1, train=100, val=1, size=size)
    folder = open_partition(data)["site-1"].train
    client = DetectorClient("site-1", train=folder, imgsz=size, selector=All(), optimizer="SGD", lr=1e-3)
    _, x = client.initial()
    task = Task(1, "fit", {"model": x}, {"seed": 5})
    model, frames = yolo.build("yolov5n"), Frames(folder, size)
    pairs = []
    for _ in range(repeats + 1):
        began = time.process_time()
        client.fit(task)
        middle = time.process_time()
        plain(model, frames)
        pairs.append((middle - began, time.process_time() - middle))
    return pairs[1:]


def plain(model: Any, frames: Frames) -> None:
    """One epoch in a bare loop."""
    with isolated(5, 1):
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(learning, lr=1e-3, momentum=0.9, weight_decay=5e-4, nesterov=True)
        model.train()
        for batch in Batches(frames, np.arange(len(frames)), Augment()).epoch(16, generator(5, "order")):
            optimizer.zero_grad()
            loss = model.loss(batch)[0].sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 10.0)
            optimizer.step()


if __name__ == "__main__":
    main()
