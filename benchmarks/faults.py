"""The table of what faults did, from the rows there are: python benchmarks/faults.py

The rows are made by these, each with `--out benchmarks/results/faults/NAME.jsonl`:

    python benchmarks/chaos.py flower --seeds 50 --rate 0.01       chaos.jsonl: damaged connections
    python benchmarks/chaos.py nvflare --seeds 50 --rate 0.005     the same
    python benchmarks/kills.py                                     kills.jsonl: SIGKILL at random moments
    python benchmarks/fuzz.py --count 1000000                      fuzz.jsonl: spoilt input
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from _common import caption, lines

RESULTS = Path(__file__).parent / "results" / "faults"
Rows = Sequence[Mapping[str, Any]]
ENDED = {
    "same": "the model of a calm run",
    "without": "the model of a run without just the updates that the log calls missing",
    "failed": "ended with a typed error",
}


def chaos(rows: Rows) -> list[str]:
    """A line per engine; every seed once."""
    out = [
        "| engine | share of pieces spoilt | seeds | " + " | ".join(ENDED.values()) + " | else | median s | most s |"
    ]
    out.append("|---|---:|" + "---:|" * (len(ENDED) + 4))
    for engine, rate in sorted({(r["engine"], r["rate"]) for r in rows}):
        seeds = {r["seed"]: r for r in rows if (r["engine"], r["rate"]) == (engine, rate)}.values()
        ended, took = Counter(r["ended"] for r in seeds), [r["seconds"] for r in seeds]
        cells = [engine, f"{rate:.1%}", len(seeds), *(ended[name] for name in ENDED), len(seeds) - _of(ended, ENDED)]
        out.append(_line([*cells, f"{median(took):.0f}", max(took)]))
    return out


def _of(ended: Mapping[str, int], names: Mapping[str, str]) -> int:
    return sum(ended[name] for name in names)


def kills(rows: Rows) -> list[str]:
    """A line for the server, one for the clients: the last row of each."""
    out = [
        "| killed | times | rounds or updates lost beyond what a kill may cost | other bits |",
        "|---|---:|---:|---:|",
    ]
    for row in {r["killed"]: r for r in rows}.values():
        beyond = sum(row.get(name, 0) for name in ("lost_rounds", "beyond_deadline", "other_reasons"))
        out.append(_line([row["killed"], row["kills"], beyond, row["other_bits"]]))
    return out


def fuzz(rows: Rows) -> list[str]:
    """A line per parser: the row with the most inputs."""
    out = ["| parser | inputs | longest of one, CPU ms | MB grown | CPU s |", "|---|---:|---:|---:|---:|"]
    best = {r["parser"]: r for r in sorted(rows, key=lambda r: r["inputs"])}
    for name in sorted(best, key=str.lower):
        row = best[name]
        slowest = f"{1000 * row['slowest_cpu_s']:.1f}"
        out.append(_line([name, f"{row['inputs']:,}", slowest, row["grown_mb"], f"{row['cpu_s']:.0f}"]))
    return out


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def text(folder: Path) -> str:
    """The tables of the rows in this folder."""
    parts = [
        ("chaos", "Damaged connections between sites and server, a federation a seed", chaos),
        ("kills", "SIGKILL at random moments", kills),
        ("fuzz", "Spoilt input: none raised an error that is not ours", fuzz),
    ]
    out: list[str] = []
    for name, title, table in parts:
        rows = [json.loads(line) for line in lines(str(folder / f"{name}.jsonl"))]
        if rows:
            out += [f"## {title}", "", *table(rows), "", caption(rows), ""]
    return "\n".join(out)


def main() -> None:
    (RESULTS / "table.md").write_text(text(RESULTS), encoding="utf-8")
    print(text(RESULTS))


if __name__ == "__main__":
    main()
