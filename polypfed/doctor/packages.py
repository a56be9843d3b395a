"""Packages: polypfed's own, its extras, and pairs that cannot work together."""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Sequence

from polypfed.doctor.finding import Finding, attempted, ok

BASE = ("polypfed", "numpy", "safetensors", "pydantic", "typer", "rich", "pillow")
EXTRAS = {
    "yolo": ("torch", "torchvision", "ultralytics", "cv2"),
    "report": ("matplotlib",),
    "edge": ("ai_edge_litert", "cv2", "cryptography"),
    "flower": ("flwr", "cryptography"),
    "nvflare": ("nvflare",),
    "he": ("tenseal", "cryptography"),
    "release": ("tuf", "securesystemslib"),
    "dp": ("dp_accounting",),
    "fast": ("numba",),
    "mlflow": ("mlflow",),
    "tensorboard": ("tensorboard",),
    "prometheus": ("prometheus_client",),
}
Find = Callable[[str], bool]
Version = Callable[[str], str | None]


def here(module: str) -> bool:
    """Whether a module could be imported; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def version_of(package: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def base(version: Version = version_of) -> Iterator[Finding]:
    """What polypfed always needs."""
    for name in BASE:
        found = version(name)
        remedy = "Install polypfed again: pip install --force-reinstall polypfed"
        yield ok(name, found) if found else Finding(name, "error", "missing", remedy)


def extras(needed: Sequence[str], find: Find = here) -> Iterator[Finding]:
    """Each extra: one that is needed and missing is an error, another only a note."""
    for extra, modules in EXTRAS.items():
        missing = [m for m in modules if not find(m)]
        if extra == "edge" and missing and find("tflite_runtime"):
            missing = [m for m in missing if m != "ai_edge_litert"]  # the other runtime serves as well
        if not missing:
            yield ok(f"extra {extra}", "installed")
            continue
        state = "error" if extra in needed else "note"
        detail = f"without {', '.join(missing)}" + (", which this role needs" if extra in needed else "")
        yield Finding(f"extra {extra}", state, detail, f"pip install 'polypfed[{extra}]'")  # type: ignore[arg-type]


def pairs(version: Version = version_of) -> Iterator[Finding]:
    """tflite-runtime up to 2.14 was built against NumPy 1 and stops the process when it meets NumPy 2."""
    runtime, numpy = version("tflite-runtime"), version("numpy")
    if runtime is None or numpy is None:
        return
    if _number(runtime) > (2, 14) or _number(numpy) < (2,):
        yield ok("tflite-runtime", f"{runtime} with NumPy {numpy}")
        return
    detail = f"{runtime} was built for NumPy 1, here is NumPy {numpy}"
    if version("ai-edge-litert"):
        yield Finding("tflite-runtime", "note", f"{detail}; ai-edge-litert is used", "pip uninstall tflite-runtime")
        return
    remedy = "pip install 'ai-edge-litert>=2.1', which runs the same files, and pip uninstall tflite-runtime"
    yield Finding("tflite-runtime", "error", detail, remedy)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def detector(find: Find = here) -> Iterator[Finding]:
    """Build the smallest detector and run it on a grey frame: what `demo` and `run` need first."""
    if not all(find(m) for m in EXTRAS["yolo"]):
        yield Finding("detector", "note", "not tried: extra yolo is missing", "pip install 'polypfed[yolo]'")
        return
    yield attempted("OpenCV", _opencv, "apt-get install libgl1 libglib2.0-0")
    yield attempted("detector", _smoke, "pip install --force-reinstall 'polypfed[yolo]'")


def _opencv() -> str:
    return str(importlib.import_module("cv2").__version__)


def _smoke() -> str:
    import numpy as np

    from polypfed.detect import yolo

    model = yolo.build("yolov5n")
    yolo.predict(model, [np.full((64, 64, 3), 114, np.uint8)], 64)
    return "yolov5n builds offline and runs"
