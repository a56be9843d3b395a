"""The whole loop on real frames: detect, keep the hard ones, have them labelled, train, take the new model over.

    python benchmarks/edge_loop.py [--arch yolov5n ...] [--engine local --engine flower] [--images 120] [--beside]

Two boards (Kvasir-SEG, PolypGen centre 1), 80 : 20, frames below 0.7 by LiteRT on the board's own files, three rounds
of six epochs by torch, FedAvg. The labels of the data sets answer for the clinician, by the YOLO export and import.
yolov5n starts from COCO weights, yolov5s from the same, widened; other sizes start at random. --beside measures what
training costs the detector of the same machine. Needs `polypfed export ARCH --image-size 160`, once.
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

import polypfed as pf
from polypfed.backends.device import beside
from polypfed.backends.site_file import SiteFile
from polypfed.core.files import write_atomic

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


def slowdown(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The service of one board, endlessly over its frames: the detector alone, and while the site trains (nice 10)."""
    warm = str(options.data / "weights" / "yolov5n_coco_fp16.npz")
    name = SITES[0]
    tables = f'names = ["{name}"]\narch = "yolov5n"\nwarm = {json.dumps(warm)}\n'
    text = f'name = "{name}"\nclient = "_edge_sites:client"\n[settings]\n{tables}'
    folder.mkdir(parents=True)
    prepare(folder, name, text, options, "yolov5n")
    # Below a threshold of 0.01 nothing is hard: otherwise hundreds of frames a second would be packed and encrypted.
    (folder / "site.toml").write_text(text + board(folder, "yolov5n", repeat=True, threshold=0.01))
    site = SiteFile.load(folder / "site.toml")
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
    found = {}
    for key in ("fps", "p50_ms", "p99_ms"):
        before, meanwhile = (float(np.median([s[key] for s in some])) for some in (alone + again, during))
        found[key] = {"alone": before, "training": meanwhile, "ratio": round(meanwhile / before, 3)}
    return found | {"seconds_of_training": len(during)}


def _state(device: Any) -> dict[str, float]:
    time.sleep(1)
    return device.status()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/bench/edge-loop"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("POLYPFED_DATA", "../shared/data")))
    parser.add_argument("--arch", action="append", choices=[f"yolov5{s}" for s in "nsmlx"])
    parser.add_argument("--engine", action="append", choices=["local", "flower"])
    parser.add_argument("--images", type=int, default=120, help="per site, of which four fifths are frames")
    parser.add_argument("--beside", action="store_true")
    options = parser.parse_args()
    options.data, work = options.data.absolute(), options.work.absolute()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d')}")
    shutil.rmtree(work, ignore_errors=True)
    found: dict[str, Any] = {}
    if options.beside:
        found["beside"] = slowdown(work / "beside", options)
        print(json.dumps(found["beside"]), flush=True)
    for arch in options.arch or ([] if options.beside else ["yolov5n"]):
        warm = start(arch, options.data / "weights" / "yolov5n_coco_fp16.npz", work)
        for engine in options.engine or ["local", "flower"]:
            begun = time.perf_counter()
            rows = {"local": local, "flower": flower}[engine](work / f"{arch}-{engine}", arch, warm, options)
            found[f"{arch} {engine}"] = summary(rows) | {"seconds": round(time.perf_counter() - begun)}
            print(arch, engine, json.dumps(found[f"{arch} {engine}"]), flush=True)
    write_atomic(work / "loop.json", json.dumps(found, indent=1).encode())


if __name__ == "__main__":
    assert federation  # the server imports it from here by name
    main()
