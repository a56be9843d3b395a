"""How close the synthetic frames come to real ones, and what they cost.

    python benchmarks/synth.py [--sites 8] [--frames 120] [--seed 0] [--out runs/bench/synth.jsonl]

Prints the medians per site at 256 px beside the span of five real sources, and CPU milliseconds per frame; writes them
beside --out.
"""

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
from _common import about, append, tell

from polypfed.data.synth import frame
from polypfed.data.synth.tree import schedule

COLUMNS = ("blue", "green", "red", "laplacian", "glint %", "glint spots", "black %", "off-centre", "at border %")
# Medians of kvasir_seg and polypgen_c1 .. c4, measured on the public sets at 256 px.
REAL = {
    "kvasir_seg": (71, 97, 168, 717, 0.63, 16, 17, 0.38, 21),
    "polypgen_c1": (72, 105, 167, 539, 0.32, 8, 5, 0.42, 17),
    "polypgen_c2": (73, 95, 142, 519, 1.2, 15, 17, 0.44, 12),
    "polypgen_c3": (79, 101, 156, 790, 0.57, 16, 18, 0.47, 5),
    "polypgen_c4": (88, 110, 141, 733, 0.56, 12, 23, 0.45, 19),
}
LIMITS_MS = {128: 5, 192: 10, 256: 20}


def look_at(image: np.ndarray) -> list[float]:
    """Image figures: mean B, G, R inside the view, Laplacian variance, glint share and spots, black share."""
    view = image.max(2) >= 20
    glint = (image.min(2) > 215) & view
    spots = cv2.connectedComponents(glint.astype(np.uint8), connectivity=8)[0] - 1
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    colour = image[view].mean(0)[::-1]
    return [*colour, cv2.Laplacian(grey, cv2.CV_64F).var(), 100 * glint.sum() / view.sum(), spots, 100 * (~view).mean()]


def look_at_boxes(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """(n, 2): distance of each box's centre from the image's in half sides, and whether it touches the border."""
    share = boxes / (width, height, width, height)
    off = np.hypot(share[:, 0] + share[:, 2] - 1, share[:, 1] + share[:, 3] - 1)
    gap = np.minimum(share[:, :2].min(1), (1 - share[:, 2:]).min(1))
    return np.stack([off, gap < 0.005], 1)


def site_row(site: str, frames: int, size: int, seed: int) -> list[float]:
    images, boxes = [], []
    for (patient, sequence, index), _ in zip(schedule(site, seed, 0), range(frames), strict=False):
        made = frame(site, f"p{patient:04d}", sequence, index, size, seed)
        coded = cv2.imencode(".jpg", made.image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
        images.append(look_at(cv2.imdecode(coded, cv2.IMREAD_COLOR)))
        boxes.append(look_at_boxes(made.boxes, made.image.shape[1], made.image.shape[0]))
    placed = np.concatenate(boxes)
    return [*np.median(images, 0), float(np.median(placed[:, 0])), 100 * float(placed[:, 1].mean())]


def cost(size: int, frames: int = 25, passes: int = 5) -> float:
    """CPU milliseconds per image on one thread, best pass of five; each pass meets patients it has not seen."""
    cv2.setNumThreads(1)
    taken = []
    for turn in range(passes + 1):  # the first fills the caches of cameras and textures
        begin = time.process_time()
        for site in ("site-1", "site-2", "site-3", "site-4"):
            for (patient, sequence, index), _ in zip(schedule(site, 1, 100 * turn), range(frames), strict=False):
                frame(site, f"p{patient:04d}", sequence, index, size, seed=1)
        taken.append(1000 * (time.process_time() - begin) / (4 * frames))
    return min(taken[1:])


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--sites", type=int, default=8)
    ask.add_argument("--frames", type=int, default=120)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--out", type=Path, default=Path("runs/bench/synth.jsonl"))
    given = ask.parse_args()
    rows = {f"site-{k + 1}": site_row(f"site-{k + 1}", given.frames, 256, given.seed) for k in range(given.sites)}
    real = np.array(list(REAL.values()))
    low, high = real.min(0), real.max(0)
    made = np.array(list(rows.values()))
    within = ((np.round(made, 2) >= low) & (np.round(made, 2) <= high)).mean(0)
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * len(COLUMNS) + "|"]
    for name, row in {**REAL, "lowest": low, "highest": high, **rows}.items():
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in row) + " |")
    lines.append("| within | " + " | ".join(f"{share:.0%}" for share in within) + " |")
    ms = {size: round(cost(size), 2) for size in LIMITS_MS}
    costs = ["| px | CPU ms per frame | goal |", "|---:|---:|---:|"]
    costs += [f"| {size} | {ms[size]:.1f} | {limit} |" for size, limit in LIMITS_MS.items()]
    where = about("synth", ("polypfed", "numpy", "opencv-python"))
    append(given.out, [where | {"sites": given.sites, "frames": given.frames, "seed": given.seed, "cpu_ms": ms}])
    tell(given.out, where, "\n".join(lines), "\n".join(costs))


if __name__ == "__main__":
    main()
