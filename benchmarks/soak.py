"""Does a long run grow? Memory and open files of the server's process over 200 rounds, after 100 to warm up.

    python benchmarks/soak.py                     # all cases, one process each
    python benchmarks/soak.py --case he --rounds 50
    python benchmarks/soak.py --show              # the table from the rows there are

Every case keeps its run in a folder: a checkpoint and an entry of the audit log a round. Sites live in the same process
(in two more under "workers", whose memory is added). After each round the resident anonymous memory, which is all but
mapped files (/proc/PID/smaps_rollup), and the open files (/proc/PID/fd) are read. The first --warm rounds are left out:
allocators and caches take what they will keep, and those rounds say nothing of the thousandth. The least-squares line
through the --rounds behind them gives MB per 100 rounds. The proportional set size would move with whatever else runs
on the machine and shares libraries. The goal: at most 1 MB per 100 rounds and process, and as many open files at the
end as after the first rounds. A history grows by some 200 bytes a row, here some 20 rows a round: 0.4 MB per 100.

fedavg, workers, scaffold    5 sites of 100,000 parameters
he                           3 sites of 20,000 parameters, encrypted
detector                     2 sites of YOLOv5n, 4 made-up images of 64 px each, SCAFFOLD

--check: exit code 1 if the goal is missed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import about, append, caption, lines, single_thread

RESULTS = Path(__file__).parent / "results" / "soak"
CASES = ("fedavg", "workers", "scaffold", "he", "detector")
GOAL = 1.0  # MB per 100 rounds


class Pull:
    """The gradient of half the squared distance to one value everywhere; at module level, where workers find it."""

    def __init__(self, at: float) -> None:
        self.at = np.float32(at)

    def __call__(self, x: Any) -> Any:
        return x - self.at


def federation(case: str, folder: Path) -> tuple[Any, Any]:
    """A federation and the backend that carries it."""
    import polypfed as pf

    if case == "detector":
        from polypfed.data import open_partition
        from polypfed.data.synth import synth
        from polypfed.select import All

        synth(folder / "data", sites=2, train=4, val=2, size=64, seed=0)
        detectors = [
            pf.clients.DetectorClient(s.name, s.train, s.val, imgsz=64, batch=4, selector=All())
            for s in open_partition(folder / "data").values()
        ]
        return pf.Federation(clients=detectors, strategy=pf.strategies.Scaffold(option="I")), pf.backends.Local()
    sites, size = (3, 20_000) if case == "he" else (5, 100_000)
    x0 = np.zeros(size, np.float32)
    clients = [pf.NumpyClient(f"s{i}", Pull(i), x0, lr=0.1, steps=2, weight=10 + i) for i in range(sites)]
    strategy = pf.strategies.Scaffold() if case == "scaffold" else pf.strategies.FedAvg()
    stages = pf.privacy.stages("he") if case == "he" else ()
    fed = pf.Federation(clients=clients, strategy=strategy, stages=stages, quorum=sites)
    return fed, pf.backends.Local(2 if case == "workers" else 1)


def memory_mb() -> float:
    """Resident anonymous memory of this process and its children."""
    parts = [int(x) for x in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return sum(resident(pid) for pid in [os.getpid(), *parts])


def resident(pid: int) -> float:
    """Of one process, in MB."""
    found = [x for x in lines(f"/proc/{pid}/smaps_rollup") if x.startswith("Anonymous:")]
    return int(found[0].split()[1]) / 1024 if found else 0.0


def open_files() -> int:
    """Of this process."""
    return len(os.listdir("/proc/self/fd"))


def soak(case: str, rounds: int, warm: int) -> dict[str, Any]:
    """One run in this process, of so many rounds behind the first `warm`; its memory and open files after each."""
    memory: list[float] = []
    files: list[int] = []
    with tempfile.TemporaryDirectory() as place:
        fed, backend = federation(case, Path(place))

        def listen(event: Any) -> None:
            if event.kind == "saved" and event.round:
                memory.append(memory_mb())
                files.append(open_files())

        history = fed.run(warm + rounds, backend, Path(place) / "run", listen)
        kept = sorted(p.name for p in (Path(place) / "run").iterdir())
    assert len(memory) == warm + rounds
    assert not history.failures
    assert "audit.jsonl" in kept, kept
    found = {"case": case, "warm": warm, "rounds": rounds, "processes": 3 if case == "workers" else 1}
    found |= line(memory[warm:], files[warm:])
    return found | {"memory_mb": [round(m, 2) for m in memory]}


def line(memory: Sequence[float], files: Sequence[int]) -> dict[str, Any]:
    """MB per 100 rounds of the line through these rounds, its standard error, and what files did there."""
    y = np.array(memory)
    x = np.arange(len(y)) / 100
    slope, start = np.polyfit(x, y, 1)
    error = np.sqrt(((y - slope * x - start) ** 2).sum() / max(len(y) - 2, 1) / ((x - x.mean()) ** 2).sum())
    found = {"mb_per_100": round(float(slope), 3), "error": round(float(error), 3), "mb_end": round(float(y[-1]), 1)}
    return found | {"files_start": files[0], "files_end": files[-1], "files_most": max(files)}


def held(row: Mapping[str, Any]) -> bool:
    """Is the goal met?"""
    return bool(row["mb_per_100"] <= GOAL * row["processes"] and row["files_end"] <= row["files_start"])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; the last row of a case and number of rounds counts. Earlier rows left out the first tenth."""
    out = [
        "| case | processes | left out | rounds | MB per 100 rounds | MB at the end | open files | goal |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    rows = [r if "warm" in r else {**r, "warm": r["rounds"] // 10, "rounds": r["rounds"] * 9 // 10} for r in rows]
    for r in {(r["case"], r["warm"], r["rounds"]): r for r in rows}.values():
        files = f"{r['files_start']} to {r['files_end']}, most {r['files_most']}"
        slope = f"{r['mb_per_100']:+.2f} ± {r['error']:.2f}"
        met = "met" if held(r) else "missed"
        what = f"{r['case']} | {r['processes']} | {r['warm']} | {r['rounds']}"
        out.append(f"| {what} | {slope} | {r['mb_end']:.0f} | {files} | {met} |")
    return "\n".join([*out, "", caption(rows)]) + "\n"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--case", nargs="+", default=list(CASES), choices=CASES)
    options.add_argument("--rounds", type=int, default=200)
    options.add_argument("--warm", type=int, default=100, help="rounds before those that are measured")
    options.add_argument("--one", action="store_true", help="run the case in this process and print its row")
    options.add_argument("--show", action="store_true")
    options.add_argument("--check", action="store_true")
    options.add_argument("--out", type=Path, default=RESULTS)
    given = options.parse_args()
    single_thread()
    if given.one:
        print(json.dumps(soak(given.case[0], given.rounds, given.warm)))
        return 0
    path = given.out / "points.jsonl"
    for case in () if given.show else given.case:
        command = [sys.executable, __file__, "--one", "--case", case]
        command += ["--rounds", str(given.rounds), "--warm", str(given.warm)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        append(path, [about("soak", ("polypfed", "numpy", "torch")) | found])
    rows = [json.loads(row) for row in lines(str(path))]
    (given.out / "table.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))
    return int(given.check and not all(held(r) for r in {r["case"]: r for r in rows}.values()))


if __name__ == "__main__":
    sys.exit(main())
