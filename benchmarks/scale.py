"""What the engine itself costs against sites, model size and rounds: CPU, memory and bytes, with straight lines.

    python benchmarks/scale.py            # writes benchmarks/results/scale/{points.jsonl,table.md,plot.svg}
    python benchmarks/scale.py --show     # table and plot from the rows there are
    python benchmarks/scale.py --engine flower   # only these points: our backend on Flower's simulation, 2 Ray actors

Sites hold no data and their work is one cheap step, so what is measured is moving, checking and adding updates and the
checkpointing of none. Each point is a process of its own; points that are done are not repeated. CPU time is of the
whole process, median of the rounds; memory is its peak over that of the same process before the federation. On Ray
both are those of all processes together, CPU without the start of the engine (the first round), memory with it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import about, append, lines, single_thread

RESULTS = Path(__file__).parent / "results" / "scale"
PARAMS = {"n": 2_519_683, "s": 9_143_891, "m": 25_105_555, "l": 53_227_987, "x": 97_293_971}  # of YOLOv5, one class
SMALL = 100_000
SITES, ROUNDS = (2, 20, 200, 2000), (1, 4, 16)
POINTS = [*((n, SMALL, 4) for n in SITES), *((2, p, 2) for p in PARAMS.values()), *((20, SMALL, r) for r in ROUNDS)]
ON_RAY = [*((n, SMALL, 4) for n in (2, 10, 30, 100)), *((2, p, 3) for p in PARAMS.values())]
WORKERS = 2
Point = tuple[int, int, int]


def plan(engine: str) -> list[tuple[str, Point]]:
    """All points of an engine, or of both."""
    local = [("local", p) for p in dict.fromkeys(POINTS)] if engine in ("local", "all") else []
    return local + ([("flower", p) for p in ON_RAY] if engine in ("flower", "all") else [])


def on_ray(sites: int, params: int, rounds: int) -> dict[str, Any]:
    """The same federation over Flower's simulation engine."""
    import psutil

    import polypfed as pf
    from polypfed.backends.flower import Flower
    from polypfed.federation import Event

    x0 = np.zeros(params, np.float32)
    clients = [pf.NumpyClient(f"s{i:05d}", lambda x: x - np.float32(1), x0, lr=0.5) for i in range(sites)]
    fed, me = pf.Federation(clients=clients, evaluate="off"), psutil.Process()
    marks, peak = [(time.monotonic(), 0.0)], 0.0

    def listen(event: Event) -> None:
        nonlocal peak
        if event.kind == "saved":
            tree = [me, *me.children(recursive=True)]
            marks.append((time.monotonic(), sum(sum(p.cpu_times()[:4]) for p in tree)))
            peak = max(peak, sum(p.memory_full_info().pss for p in tree) / 2**20)

    history = fed.run(rounds, Flower(workers=WORKERS), listen=listen)
    assert history.model is not None
    assert float(history.model[0]) == 1 - 0.5**rounds, "every site counted in every round"
    wall, cpu = (np.diff([m[i] for m in marks])[-rounds:] for i in (0, 1))
    found = {"sites": sites, "params": params, "rounds": rounds, "first_round_s": float(wall[0])}
    found |= {"cpu_s_round": float(np.median(cpu[1:])), "wall_s_round": float(np.median(wall[1:])), "memory_mb": peak}
    return found | {"mb_up_round": sum(history.values("bytes_up").values()) / rounds / 1e6}


def point(sites: int, params: int, rounds: int) -> dict[str, Any]:
    """One federation, in this process."""
    import polypfed as pf
    from polypfed.federation import Event

    x0 = np.zeros(params, np.float32)
    clients = [pf.NumpyClient(f"s{i:05d}", lambda x: x - np.float32(1), x0, lr=0.5) for i in range(sites)]
    fed, before, marks = pf.Federation(clients=clients, evaluate="off"), _peak_mb(), [time.process_time()]

    def listen(event: Event) -> None:
        if event.kind == "saved":
            marks.append(time.process_time())

    history = fed.run(rounds, pf.backends.Local(), listen=listen)
    assert history.model is not None
    assert float(history.model[0]) == 1 - 0.5**rounds, "every site counted in every round"
    each = float(np.median(np.diff(marks)[-rounds:]))
    up = sum(history.values("bytes_up").values()) / rounds
    return {"sites": sites, "params": params, "rounds": rounds, "cpu_s_round": each, "cpu_s": marks[-1] - marks[0]} | {
        "memory_mb": _peak_mb() - before,
        "mb_up_round": up / 1e6,
    }


def _peak_mb() -> float:
    return float(next(line for line in lines("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024


def slope(points: list[dict[str, Any]], x: str, y: str) -> tuple[float, float, float]:
    """Of the least-squares line: slope, intercept, and the share of the variance it explains."""
    xs, ys = (np.array([p[k] for p in points], float) for k in (x, y))
    a, b = np.polyfit(xs, ys, 1)
    rest = float(((ys - a * xs - b) ** 2).sum() / (((ys - ys.mean()) ** 2).sum() or 1.0))
    return float(a), float(b), 1 - rest


def groups(every: list[dict[str, Any]]) -> dict[str, tuple[str, str, list[dict[str, Any]]]]:
    """What is varied -> (x, y, points), in this process alone."""
    rows = [r for r in every if "engine" not in r]
    return {
        "sites": ("sites", "cpu_s_round", [r for r in rows if r["params"] == SMALL and r["rounds"] == 4]),
        "model size": ("params", "cpu_s_round", [r for r in rows if r["sites"] == 2 and r["rounds"] == 2]),
        "rounds": ("rounds", "cpu_s", [r for r in rows if r["sites"] == 20 and r["params"] == SMALL]),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, and the lines that were fitted."""
    out = [
        "| sites | parameters | rounds | CPU s a round | memory MB | MB up a round |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    out += [
        f"| {r['sites']} | {r['params']:,} | {r['rounds']} | {r['cpu_s_round']:.4f} | {r['memory_mb']:.0f} "
        f"| {r['mb_up_round']:.1f} |"
        for r in sorted(rows, key=lambda r: (r["params"], r["sites"], r["rounds"]))
        if "engine" not in r
    ]
    out.append("")
    for name, (x, y, points) in groups(rows).items():
        if len(points) > 2:
            a, b, r2 = slope(points, x, y)
            unit = x.removesuffix("s").replace("param", "parameter")
            out.append(f"- {name}: CPU s = {b:.3g} + {a:.3g} per {unit} (R² {r2:.3f})")
    by_sites = groups(rows)["sites"][2]
    if len(by_sites) > 2:
        a, b, _ = slope(by_sites, "sites", "cpu_s_round")
        m, c, _ = slope(by_sites, "sites", "memory_mb")
        cpu, gb = b + 1e4 * a, 1e4 * PARAMS["n"] * 4 / 1e9
        out.append(
            f"- on paper, a round of 10,000 sites of {SMALL:,} parameters: {cpu:.1f} CPU s, {c + 1e4 * m:.0f} MB"
        )
        out.append(
            f"- of YOLOv5n: {cpu * PARAMS['n'] / SMALL:.0f} CPU s if cost grew with size as well, and {gb:.0f} GB up; "
            f"at 1 Gbit/s these take {gb * 8:.0f} s, so the network is the next bottleneck"
        )
    out += ["", f"In this process: {_where([r for r in rows if 'engine' not in r][-1])}"]
    out += ray_table([r for r in rows if r.get("engine") == "flower"])
    return "\n".join(out) + "\n"


def ray_table(rows: list[dict[str, Any]]) -> list[str]:
    """Flower's simulation beside this process."""
    if not rows:
        return []
    out = [
        "",
        f"The same through Flower's simulation engine, {WORKERS} Ray actors; CPU and memory of all processes:",
        "",
    ]
    out.append("| sites | parameters | CPU s a round | s a round | first round, s | memory MB |")
    out.append("|---:|---:|---:|---:|---:|---:|")
    out += [
        f"| {r['sites']} | {r['params']:,} | {r['cpu_s_round']:.3f} | {r['wall_s_round']:.2f} "
        f"| {r['first_round_s']:.0f} | {r['memory_mb']:.0f} |"
        for r in sorted(rows, key=lambda r: (r["params"], r["sites"]))
    ]
    out.append("")
    by = {
        "site": ("sites", [r for r in rows if r["params"] == SMALL]),
        "parameter": ("params", [r for r in rows if r["sites"] == 2 and r["params"] != SMALL]),
    }
    for unit, (x, points) in by.items():
        if len(points) > 2:
            a, b, r2 = slope(points, x, "cpu_s_round")
            out.append(f"- on Ray: CPU s = {b:.3g} + {a:.3g} per {unit} (R² {r2:.3f})")
    loads = [v for r in rows for v in r["load"]]
    return [*out, "", f"On Ray: load {min(loads):.0f} to {max(loads):.0f}; {_where(rows[-1])}"]


def _where(row: dict[str, Any]) -> str:
    return f"{row['date'][:10]}, {row['cpu']}; {', '.join(f'{k} {v}' for k, v in row['versions'].items())}."


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """The points and the lines, log-log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"svg.hashsalt": "scale", "font.size": 8}):
        figure, all_axes = plt.subplots(1, 3, figsize=(8.4, 3.0), layout="constrained")
        for axes, (name, (x, y, points)) in zip(all_axes, groups(rows).items(), strict=True):
            xs = sorted(p[x] for p in points)
            axes.plot([p[x] for p in points], [p[y] for p in points], "o", color="#0072B2")
            if len(points) > 2:
                a, b, _ = slope(points, x, y)
                axes.plot(xs, [a * v + b for v in xs], "--", color="#D55E00")
            axes.set(
                xscale="log", yscale="log", xlabel=name, ylabel="CPU s" + (" a round" if y != "cpu_s" else " in all")
            )
            axes.grid(alpha=0.3)
        figure.supxlabel(
            f"points and least-squares lines; one run of each; {[r for r in rows if 'engine' not in r][-1]['cpu']}",
            fontsize=6,
        )
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--show", action="store_true")
    options.add_argument("--point", type=int, nargs=3, metavar=("SITES", "PARAMS", "ROUNDS"), help="print one point")
    options.add_argument("--engine", choices=("local", "flower", "all"), default="all")
    given = options.parse_args()
    single_thread()
    if given.point:
        print(json.dumps((on_ray if given.engine == "flower" else point)(*given.point)))
        return
    path = RESULTS / "points.jsonl"
    stored = map(json.loads, lines(str(path)))
    done = {(r.get("engine", "local"), (r["sites"], r["params"], r["rounds"])) for r in stored}
    for engine, one in [] if given.show else plan(given.engine):
        if (engine, one) in done:
            continue
        command, load = [sys.executable, __file__, "--engine", engine, "--point", *map(str, one)], os.getloadavg()[0]
        found = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )
        if engine == "flower":
            packages = ("polypfed", "numpy", "flwr", "ray")
            found |= {"engine": engine, "workers": WORKERS, "load": [round(load, 1), round(os.getloadavg()[0], 1)]}
        else:
            packages = ("polypfed", "numpy")
        append(path, [about("scale", packages) | found])
        print(json.dumps(found), flush=True)
    rows = [json.loads(line) for line in lines(str(path))]
    text = table(rows)
    (RESULTS / "table.md").write_text(text, encoding="utf-8")
    plot(rows, RESULTS / "plot.svg")
    print(text)


if __name__ == "__main__":
    main()
