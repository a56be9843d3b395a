"""What our rounds cost on NVFlare's simulator, beside FedAvg written by hand for NVFlare with the same training.

    python benchmarks/on_nvflare.py [--rounds 2 6] [--seconds 5]

A model of YOLOv5n's size, two sites, two threads, plain FedAvg, no evaluation; both sides see the same arrays and
train for the same seconds of CPU. CPU is that of all processes, sampled from /proc. A round is the difference between
a longer and a shorter run, by the rounds between them; start-up is what remains. The peer is benchmarks/nvflare_job.py.
Goal: at most 5 % more CPU in a round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from _common import about, append, tell

HERE = Path(__file__).resolve().parent
TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, nargs=2, default=[2, 6])
    options.add_argument("--seconds", type=float, default=5.0, help="CPU seconds of training per site and round")
    options.add_argument("--out", type=Path, default=Path("runs/bench/nvflare.jsonl"))
    options.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        side, rounds, folder = given.child
        (_polypfed if side == "polypfed" else _by_hand)(int(rounds), given.seconds, folder)
        return
    row: dict[str, Any] = {"seconds": given.seconds, "load": os.getloadavg()[0]}
    for side in ("by_hand", "polypfed"):
        short, long = (measure(side, rounds, given.seconds) for rounds in given.rounds)
        between = given.rounds[1] - given.rounds[0]
        cpu = (long["cpu"] - short["cpu"]) / between
        row[side] = {
            "round_cpu_s": cpu,
            "round_s": long["round_s"],
            "start_cpu_s": short["cpu"] - given.rounds[0] * cpu,
            "start_s": min(short["start_s"], long["start_s"]),
            "end_s": min(short["end_s"], long["end_s"]),
            "bytes_per_site_and_round": _bytes(side),
        }
        print(side, json.dumps(row[side]), flush=True)
    row["ratio_cpu"] = row["polypfed"]["round_cpu_s"] / row["by_hand"]["round_cpu_s"]
    totals = [row[side]["start_cpu_s"] + given.rounds[1] * row[side]["round_cpu_s"] for side in ("polypfed", "by_hand")]
    row["ratio_cpu_whole"] = totals[0] / totals[1]
    where = about("nvflare", ("polypfed", "numpy", "nvflare"), rounds=given.rounds)
    append(given.out, [where | row])
    tell(given.out, where, table(row))


def table(row: dict[str, Any]) -> str:
    """Markdown: both sides, and ours over the other."""
    lines = ["| two sites, a model of YOLOv5n's size | by hand | polypfed | ratio |", "|---|---:|---:|---:|"]
    for name, hand in row["by_hand"].items():
        ours = row["polypfed"][name]
        lines.append(f"| {name.replace('_', ' ')} | {hand:,.2f} | {ours:,.2f} | {ours / hand:.4f} |")
    whole = f"| CPU of the whole run | | | {row['ratio_cpu_whole']:.4f} |"
    return "\n".join([*lines, whole, "", f"{row['seconds']:g} CPU seconds of training per site and round."])


def measure(side: str, rounds: int, seconds: float) -> dict[str, float]:
    """One run in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--seconds", str(seconds), "--child", side, str(rounds), folder]
        begun = time.monotonic()
        with open(Path(folder) / "log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        used, done = dict[int, float](), threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, used, done))
        sampler.start()
        code = process.wait()
        done.set()
        sampler.join()
        ended = time.monotonic()
        if code:
            sys.exit((Path(folder) / "log").read_text()[-3000:])
        marks = [float(line) for line in (Path(folder) / "marks").read_text().split()][: rounds + 1]
    lengths = [b - a for a, b in pairwise(marks)][1:]
    return {
        "cpu": sum(used.values()),
        "start_s": marks[1] - begun - median(lengths),  # one side starts its simulator in round 1
        "round_s": median(lengths),
        "end_s": ended - marks[-1],
    }


def _sample(pid: int, used: dict[int, float], done: threading.Event) -> None:
    from polypfed.backends.nvflare.simulation import family

    while not done.wait(0.1):
        for one in family(pid):
            try:
                fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            used[one] = max(used.get(one, 0.0), (int(fields[11]) + int(fields[12])) / TICK)


def _polypfed(rounds: int, seconds: float, folder: str) -> None:
    from nvflare_job import Site, mark

    from polypfed import Federation
    from polypfed.backends.nvflare import NVFlare
    from polypfed.federation import Event

    def listen(event: Event) -> None:
        if event.kind == "saved":
            mark(f"{folder}/marks")

    sites = [Site(name, seconds) for name in ("site-1", "site-2")]
    Federation(clients=sites, evaluate="off", quorum=2).run(rounds, NVFlare(workers=2), None, listen)


def _by_hand(rounds: int, seconds: float, folder: str) -> None:
    from nvflare_job import by_hand

    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(HERE)
    by_hand(rounds, seconds, folder)


def _bytes(side: str) -> int:
    """A task and its answer, as NVFlare serialises them."""
    from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
    from nvflare.app_common.decomposers import numpy_decomposers
    from nvflare.app_common.utils.fl_model_utils import FLModelUtils
    from nvflare.fuel.utils import fobs
    from nvflare_job import Site, model

    from polypfed import Task, Update
    from polypfed.backends.nvflare.payload import reply_to_shareable, task_to_shareable

    numpy_decomposers.register()
    spec, x = Site("site-1", 0.0).initial()
    layout = [(part.name, part.stop - part.start) for part in spec.parts]
    if side == "polypfed":
        messages = [
            task_to_shareable(Task(1, "fit", {"model": x}, {"run": "0" * 16}), layout, 600.0),
            reply_to_shareable(Update("site-1", 1, {"delta": x}, 1), layout),
        ]
    else:
        kinds = (ParamsType.FULL, ParamsType.DIFF)
        messages = [FLModelUtils.to_shareable(FLModel(params=model(), params_type=kind)) for kind in kinds]
    return sum(len(fobs.dumps(message)) for message in messages)


if __name__ == "__main__":
    main()
