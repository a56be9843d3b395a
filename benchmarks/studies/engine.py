"""Cells that are run once: each leaves one JSON line, and what was killed goes on from its last round."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from polypfed.core.files import write_atomic
from studies.study import Cell, Study

Row = dict[str, Any]
Run = Callable[[Cell, Path, Path], Row]


def read(path: Path) -> dict[str, Row]:
    """The rows there are, by key; those of other benchmarks have none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row["key"]: row for row in map(json.loads, lines) if "key" in row}


def rows(study: Study, path: Path) -> list[Row]:
    """Those of this study's cells that are done, in the study's order and by its names."""
    done = read(path)
    return [done[c.key] | {"cell": c.name, "seed": c.seed} for c in study.cells if c.key in done]


def complete(study: Study, path: Path, work: Path, run: Run) -> Iterator[Row]:
    """Run the cells that have no row yet, here or in another study; rows are added to `path` one by one.

    Args:
        work: where runs lie until they are done, and the data of the sites.
        run: makes the row of a cell, given the folder of its run and that of its data.
    """
    elsewhere = {key: row for other in sorted(path.parents[1].glob("*/rows.jsonl")) for key, row in read(other).items()}
    for cell in study.cells:
        if cell.key in read(path):  # anew: another process may add to it between two cells
            continue
        folder = work / "runs" / cell.key
        row = elsewhere.get(cell.key) or run(cell, folder, work / "data" / cell.data_key)
        keep(path, row | {"cell": cell.name})
        shutil.rmtree(folder, ignore_errors=True)
        yield row | {"cell": cell.name}


def keep(path: Path, row: Row) -> None:
    """Add a row, in the place of an older one of its key; what another process has added meanwhile stays."""
    done = read(path) | {row["key"]: row}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(r) + "\n" for r in done.values()).encode())


def points(some: Sequence[Row], base: Sequence[Row]) -> float | None:
    """mAP50 above that of `base` in points, the mean over the seeds that both have; None without any."""
    ours, theirs = ({r["seed"]: r["map50"] for r in rows} for rows in (some, base))
    both = sorted(ours.keys() & theirs.keys())
    return mean(100 * (ours[seed] - theirs[seed]) for seed in both) if both else None
