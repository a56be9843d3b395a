"""What every benchmark script shares: the machine it ran on, one thread, one JSON line per measurement."""

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def single_thread() -> None:
    """Start this script anew with one thread per process, unless it has been."""
    if not ONE_THREAD.items() <= os.environ.items():  # read when numpy is loaded, so it takes a fresh start
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ONE_THREAD)


def about(bench: str, packages: Sequence[str] = ("polypfed", "numpy"), **params: Any) -> dict[str, Any]:
    """Where, when and with what something was measured."""
    named = [line.partition(":")[2].strip() for line in lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "bench": bench,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **params,
        "cpu": f"{named[0] if named else platform.processor()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
    }


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add JSON lines; nothing is overwritten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def caption(rows: Iterable[Mapping[str, Any]]) -> str:
    """Dates, machines and versions of these rows, of which there is at least one, as a sentence."""
    rows = list(rows)
    days, machines = sorted({r["date"][:10] for r in rows}), sorted({r["cpu"] for r in rows})
    versions = {name: version for r in rows for name, version in r["versions"].items()}
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{' to '.join(dict.fromkeys((days[0], days[-1])))}, {' and '.join(machines)}; {named}."


def tell(out: Path, where: Mapping[str, Any], *blocks: str) -> None:
    """Print Markdown, and write it beside the rows of `out`, with `where` it was measured (see `about`) below it."""
    text = "\n\n".join(block.strip("\n") for block in blocks)
    print(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(f"{text}\n\n{caption([where])}\n", encoding="utf-8")


def lines(path: str) -> list[str]:
    """Of a text file; none if it is not there."""
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def busy(load: Iterable[float]) -> bool:
    """More was running than this machine has cores."""
    return max(load) > (os.cpu_count() or 1) + 1


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"**{median(values):.3f}** ({min(values):.3f} to {max(values):.3f})"
