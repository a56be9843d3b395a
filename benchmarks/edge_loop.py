"""The whole loop on real frames: detect, keep the hard ones, have them labelled, train, take the new model over.

    python benchmarks/edge_loop.py [--arch yolov5n ...] [--engine local --engine flower] [--images 120]
    python benchmarks/edge_loop.py --beside      # what training costs the detector of the same machine
    python benchmarks/edge_loop.py --soak        # memory and files of the service over 20,000 frames

Two boards (Kvasir-SEG, PolypGen centre 1), 80 : 20, frames below 0.7 by LiteRT on the board's own files, three rounds
of six epochs by torch, FedAvg. The labels of the data sets answer for the clinician, by the YOLO export and import.
yolov5n starts from COCO weights, yolov5s from the same, widened; other sizes start at random. Rows are added to
results/edge. Needs `polypfed export ARCH --image-size 160`, once.
"""

import argparse
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])  # of the processes of a deployment: the package, this folder

import numpy as np
from _edge_models import widened
from _edge_sites import SITES, board, divide, federation, watch_and_label
from _edge_table import RESULTS, Table
from soak import held, line
from soak import resident as memory_of

import polypfed as pf
from polypfed.backends.device import beside
from polypfed.backends.site_file import SiteFile

ROUNDS = 3


def prepare(folder: Path, name: str, text: str, options: argparse.Namespace, arch: str) -> None:
    """A site's folder: frames, validation images, site.toml with its board, and a labelled store."""
    labels = divide(options.data / "real" / name, folder, options.images)
    (folder / "site.toml").write_text(text + board(folder, arch))
    print(
        f"{name}: {watch_and_label(folder / 'site.toml', labels)} of {len(labels)} frames kept and labelled", flush=True
    )


def local(folder: Path, arch: str, warm: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    settings = {"names": list(SITES), "arch": arch, "warm": warm}
    for name in SITES:
        (folder / name).mkdir(parents=True)
        tables = "".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items())
        prepare(
            folder / name, name, f'name = "{name}"\nclient = "_edge_sites:client"\n[settings]\n{tables}', options, arch
        )
    sites = [SiteFile.load(folder / name / "site.toml") for name in SITES]
    with beside(*sites):
        clients = [site.open() for site in sites]
        history = pf.Federation(clients=clients).run(ROUNDS, pf.backends.Local(), folder / "run")
    return list(history.rows)


def flower(folder: Path, arch: str, warm: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A SuperLink with TLS and node authentication, and per site what `polypfed site run` starts, on this machine."""
    from tests.live.flower.processes import Deployment

    more = {"arch": arch, "warm": warm}
    found = Deployment(folder, list(SITES), site=dict.fromkeys(SITES, more), **more, rounds=ROUNDS)
    found.edit("server/server.toml", "tests.live.flower.study:federation", "_edge_sites:federation")
    found.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    for name in SITES:
        path = found.folder / "sites" / name / "site.toml"
        text = path.read_text().replace("tests.live.flower.study:client", "_edge_sites:client")
        prepare(path.parent, name, text, options, arch)
    try:
        found.start_all()
        outcome = found.run(3600)
        if outcome["code"]:
            print(found.log("server", "run.sh")[-2000:])
    finally:
        found.close()
    return [json.loads(line) for line in (found.server / "run" / "history.jsonl").read_text().splitlines()]


def start(arch: str, coco: Path, work: Path) -> str:
    """The weights that an architecture starts from; "" is none."""
    if arch == "yolov5s":
        work.mkdir(parents=True, exist_ok=True)
        return str(widened(coco, work / "yolov5s.npz"))
    return str(coco) if arch == "yolov5n" else ""


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Kept share and mAP50 by round, mean over sites."""

    def mean(metric: str, number: int) -> float:
        return float(
            np.mean([r["value"] for r in rows if r["metric"] == metric and r["round"] == number and r["site"]])
        )

    numbers = range(1, ROUNDS + 1)
    kept = [round(mean("kept", n) / mean("images", n), 3) for n in numbers]
    scores = [round(mean("map50", n), 3) for n in range(ROUNDS + 1)]
    bits = [sorted({int(r["value"]) for r in rows if r["metric"] == "edge_bits" and r["round"] == n}) for n in numbers]
    return {"kept": kept, "falls": kept[-1] < kept[0], "map50": scores, "rises": scores[-1] > scores[0], "bits": bits}


def one_board(folder: Path, options: argparse.Namespace, **more: Any) -> SiteFile:
    """A site with a labelled store, whose detector then runs endlessly over its frames."""
    warm = str(options.data / "weights" / "yolov5n_coco_fp16.npz")
    tables = f'names = ["{SITES[0]}"]\narch = "yolov5n"\nwarm = {json.dumps(warm)}\n'
    text = f'name = "{SITES[0]}"\nclient = "_edge_sites:client"\n[settings]\n{tables}'
    folder.mkdir(parents=True)
    prepare(folder, SITES[0], text, options, "yolov5n")
    (folder / "site.toml").write_text(text + board(folder, "yolov5n", repeat=True, **more))
    return SiteFile.load(folder / "site.toml")


def slowdown(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The service of one board: the detector alone, and while the site trains (nice 10)."""
    # Below a threshold of 0.01 nothing is hard: otherwise hundreds of frames a second would be packed and encrypted.
    site = one_board(folder, options, threshold=0.01)
    with beside(site) as (device,):
        while device.status().get("frames", 0) < 300:
            time.sleep(0.2)
        alone = [_state(device) for _ in range(8)]
        run = pf.backends.Local(workers=2)
        fed, during = pf.Federation(clients=[site.open()], evaluate="off"), []
        training = threading.Thread(target=lambda: fed.run(2, run, folder / "run"))
        training.start()
        time.sleep(8)  # torch is loaded and the selection is over
        while training.is_alive():
            during.append(_state(device))
        training.join()
        again = [_state(device) for _ in range(8)][3:]
    found: dict[str, Any] = {"seconds of training": len(during)}
    for key in ("fps", "p50_ms", "p99_ms"):
        found[key] = [float(np.median([s[key] for s in some])) for some in (alone + again, during)]
    return found


def _state(device: Any) -> dict[str, float]:
    time.sleep(1)
    return device.status()


def soak(folder: Path, options: argparse.Namespace, warm: int = 10_000, frames: int = 20_000) -> dict[str, Any]:
    """The service of one board with its encrypted store, which is full before the end: what grows, what stays open?

    Caches fill in the first frames; they are run but not measured.
    """
    site = one_board(folder, options, store_gb=0.005)
    memory: list[float] = []
    files: list[int] = []
    with beside(site) as (device,):
        while (seen := device.status().get("frames", 0)) < warm + frames:
            time.sleep(0.05)
            if device.pid and seen >= warm + 100 * len(memory):
                memory.append(memory_of(device.pid))
                files.append(len(os.listdir(f"/proc/{device.pid}/fd")))
        status, starts = device.status(), device.starts
    grown = line(memory, files)  # a sample every hundred frames: MB per 10,000 frames
    told = {key: status[key] for key in ("frames", "kept", "errors")}
    return grown | {"warm": warm, "starts": starts} | told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/bench/edge-loop"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("POLYPFED_DATA", "../shared/data")))
    parser.add_argument("--arch", action="append", choices=[f"yolov5{s}" for s in "nsmlx"])
    parser.add_argument("--engine", action="append", choices=["local", "flower"])
    parser.add_argument("--images", type=int, default=120, help="per site, of which four fifths are frames")
    parser.add_argument("--beside", action="store_true")
    parser.add_argument("--soak", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.data, work = options.data.absolute(), options.work.absolute()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d')}")
    shutil.rmtree(work, ignore_errors=True)
    rows = Table(options.out)
    if options.beside:
        say_slowdown(rows, slowdown(work / "beside", options))
    if options.soak:
        say_soak(rows, soak(work / "soak", options))
    for arch in options.arch or ([] if options.beside or options.soak else ["yolov5n"]):
        warm = start(arch, options.data / "weights" / "yolov5n_coco_fp16.npz", work)
        for engine in options.engine or ["local", "flower"]:
            begun = time.perf_counter()
            history = {"local": local, "flower": flower}[engine](work / f"{arch}-{engine}", arch, warm, options)
            say_loop(rows, f"{arch} over {engine}", summary(history), time.perf_counter() - begun)


def say_slowdown(rows: Table, found: dict[str, Any]) -> None:
    """The bound of docs/edge.md: training takes at most half of the detector's frames per second."""
    seconds = found.pop("seconds of training")
    for key, (alone, training) in found.items():
        ratio, bound = training / alone, "> 0.5" if key == "fps" else ""
        holds = ratio > 0.5 if key == "fps" else None
        rows.add("beside", f"{key}: while training / alone", ratio, bound, holds, alone=alone, training=training)
    rows.add("beside", "seconds of training watched", float(seconds), ">= 10", seconds >= 10)


def say_soak(rows: Table, found: dict[str, Any]) -> None:
    """Flat memory, no more open files, no crash."""
    good = held(found | {"processes": 1})
    rows.add("soak", "MB of memory per 10,000 frames", found.pop("mb_per_100"), "<= 1", good, **found)


def say_loop(rows: Table, name: str, found: dict[str, Any], seconds: float) -> None:
    """Kept share and mAP50 by round."""
    kept, scores = (" ".join(f"{v:.3f}" for v in found[key]) for key in ("kept", "map50"))
    bits = " ".join("/".join(map(str, some)) for some in found["bits"])
    rows.add("loop", f"{name}: kept share by round", kept, "falls", found["falls"], bits=bits, seconds=float(seconds))
    rows.add("loop", f"{name}: mAP50 before and after each round", scores, "rises", found["rises"])


if __name__ == "__main__":
    assert federation  # the server imports it from here by name
    main()
