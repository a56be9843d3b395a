"""`polypfed doctor`: what is installed, what would fail, and how to mend it."""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from polypfed.cli.show import console

EXTRAS = {
    "yolo": ("torch", "torchvision", "ultralytics", "cv2"),
    "report": ("matplotlib",),
    "edge": ("ai_edge_litert",),
    "flower": ("flwr",),
    "nvflare": ("nvflare",),
    "he": ("tenseal", "cryptography"),
    "release": ("tuf", "securesystemslib"),
}
_FREE_GB, _MEMORY_GB = 2.0, 2.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. "error" ends with exit code 1; "note" only limits what can be done."""

    what: str
    state: Literal["ok", "note", "error"]
    detail: str
    remedy: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    directory: Annotated[Path, typer.Option("--directory", "-d", help="Where runs would be kept.")] = Path("runs"),
) -> None:
    """Say what is installed, which extras are missing, and what would fail; exit code 1 if something would."""
    with console.status("looking around"):
        found = [*_machine(directory), *_packages(), *_detector()]
    if as_json:
        print(json.dumps([asdict(f) for f in found], indent=1))
    else:
        _print(found)
    raise typer.Exit(1 if any(f.state == "error" for f in found) else 0)


def _machine(directory: Path) -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    yield Finding("Python", "ok" if good else "error", platform.python_version(), "" if good else "Install Python 3.11")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("processors", "ok", f"{cores} for this process, {platform.machine()}")
    memory = _available_memory()
    if memory is not None:
        low = memory < _MEMORY_GB
        remedy = "Use [backend] workers = 1 and a small batch" if low else ""
        yield Finding("memory", "note" if low else "ok", f"{memory:.1f} GB available", remedy)
    parent = next(p for p in [directory.absolute(), *directory.absolute().parents] if p.exists())
    free = shutil.disk_usage(parent).free / 1e9
    if not os.access(parent, os.W_OK):
        yield Finding("runs folder", "error", f"{parent} is read-only", "Give --directory")
    else:
        low = free < _FREE_GB
        yield Finding("disk", "error" if low else "ok", f"{free:.1f} GB free at {parent}", "Make room" if low else "")


def _available_memory() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1e6 for line in lines if line.startswith("MemAvailable")), None)


def _packages() -> Iterator[Finding]:
    for name in ("polypfed", "numpy", "safetensors", "pydantic", "typer", "rich", "pillow"):
        version = _version(name)
        remedy = "" if version else "Install polypfed again: pip install --force-reinstall polypfed"
        yield Finding(name, "ok" if version else "error", version or "missing", remedy)
    for extra, modules in EXTRAS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        if not missing:
            yield Finding(f"extra {extra}", "ok", "installed")
            continue
        state: Literal["note", "error"] = "note"
        yield Finding(f"extra {extra}", state, f"without {', '.join(missing)}", f"pip install 'polypfed[{extra}]'")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _detector() -> Iterator[Finding]:
    """Build the smallest detector and run it on a grey frame: what `demo` and `run` need first."""
    if any(importlib.util.find_spec(m) is None for m in EXTRAS["yolo"]):
        yield Finding("detector", "note", "not tried: extra yolo is missing", "pip install 'polypfed[yolo]'")
        return
    yield _try("OpenCV", lambda: str(importlib.import_module("cv2").__version__), "apt-get install libgl1 libglib2.0-0")
    yield _try("detector", _smoke, "pip install --force-reinstall 'polypfed[yolo]'")


def _smoke() -> str:
    import numpy as np

    from polypfed.detect import yolo

    model = yolo.build("yolov5n")
    yolo.predict(model, [np.full((64, 64, 3), 114, np.uint8)], 64)
    return "yolov5n builds offline and runs"


def _try(what: str, attempt: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(what, "ok", attempt())
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
        return Finding(what, "error", f"{type(error).__name__}: {error}", remedy)


def _print(found: list[Finding]) -> None:
    out = Table("", "what", "found", "remedy", box=None)
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "error": "[red]error[/]"}
    for finding in found:
        out.add_row(marks[finding.state], *map(escape, (finding.what, finding.detail, finding.remedy)))
    console.print(out)
    errors = sum(f.state == "error" for f in found)
    console.print(f"{errors} errors" if errors else "Nothing here would fail.")
