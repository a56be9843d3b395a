"""The rows of the device benchmarks: printed as they come, appended as JSON lines, and made into one table."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from _common import about, append, lines

from polypfed.core.files import write_atomic

RESULTS = Path(__file__).parent / "results" / "edge"
PACKAGES = ("polypfed", "numpy", "ai-edge-litert", "torch", "ultralytics")
TITLES = {
    "patch": "New weights",
    "frames": "Frames of 1280 x 1024, yolov5n at 320, one thread",
    "cold": "Cold start",
    "quality": "INT8 against fp32, yolov5n at 160, trained on real images",
    "beside": "Detection while training runs on the same machine",
    "soak": "A long run of the service",
    "loop": "The active loop: three rounds of six epochs, two sites, frames below 0.7 labelled and trained on",
}
Row = Mapping[str, Any]


class Table:
    """Rows of (claim, value, limit, whether it holds) and what was seen beside them."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder, self.path = folder, folder / "rows.jsonl"
        self._about = about("edge", PACKAGES)

    def add(
        self, part: str, claim: str, value: float | str, limit: str = "", holds: bool | None = None, **more: Any
    ) -> None:
        """One row; the table is written anew."""
        row = self._about | {"part": part, "claim": claim, "value": value, "limit": limit, "holds": holds}
        row |= {"load": round(os.getloadavg()[0], 1), "more": more}
        print(f"{claim:<72} {shown(value):>10}  {limit:<9} {mark(holds):<4} {beside(more)}", flush=True)
        append(self.path, [row])
        write_atomic(self.folder / "table.md", table(json.loads(line) for line in lines(str(self.path))).encode())


def table(rows: Iterable[Row]) -> str:
    """Markdown; of each claim the last row counts."""
    last = {(row["part"], row["claim"]): row for row in rows}
    out: list[str] = []
    for part, title in TITLES.items():
        some = [row for row in last.values() if row["part"] == part]
        if some:
            out += [f"### {title}", "", "| claim | measured | goal | holds | beside it |", "|---|---:|---|---|---|"]
            out += [_line(row) for row in some]
            out += ["", _caption(some), ""]
    return "\n".join(out)


def _line(row: Row) -> str:
    return f"| {row['claim']} | {shown(row['value'])} | {row['limit']} | {mark(row['holds'])} | {beside(row['more'])} |"


def _caption(rows: list[Row]) -> str:
    load = [row["load"] for row in rows]
    versions = ", ".join(f"{k} {v}" for k, v in rows[-1]["versions"].items())
    return f"{rows[-1]['date'][:10]}, {rows[-1]['cpu']}, load {min(load):g} to {max(load):g}; {versions}."


def shown(value: float | str) -> str:
    """Four digits of a number."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def mark(holds: bool | None) -> str:
    """Whether a goal is met; nothing where there is none."""
    return {True: "yes", False: "NO", None: ""}[holds]


def beside(more: Row) -> str:
    """What else was seen, in one line."""
    return ", ".join(f"{name} {shown(value)}" for name, value in more.items())
