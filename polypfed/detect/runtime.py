"""One way to an interpreter: ai-edge-litert first, tflite-runtime where the system is old. Only this module knows them.

A file is read with `TFLite` before the runtime sees it, and a delegate is probed before it is loaded: the runtimes
answer a bad file with a crash at times, and a bad library with errors that name neither the file nor a way out.
"""

import ctypes
import importlib
import importlib.metadata
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from polypfed.core.errors import ConfigError, MissingExtraError
from polypfed.detect.tflite import ModelFileError, TFLite

_LOG = logging.getLogger(__name__)
_RUNTIMES = {"ai_edge_litert.interpreter": "ai-edge-litert", "tflite_runtime.interpreter": "tflite-runtime"}
_SYMBOL = "tflite_plugin_create_delegate"


@dataclass(frozen=True)
class Delegate:
    """An external delegate, such as `/usr/lib/libvx_delegate.so`, with its options."""

    path: str
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Delegate":
        """From "PATH" or "PATH,key:value,key:value".

        >>> Delegate.parse("/usr/lib/libvx_delegate.so,cache_file_path:/tmp/x")
        Delegate(path='/usr/lib/libvx_delegate.so', options={'cache_file_path': '/tmp/x'})
        """
        path, *pairs = text.split(",")
        options = dict(pair.partition(":")[::2] for pair in pairs)
        return cls(path, options)


@lru_cache(maxsize=1)
def runtime(prefer: str = "") -> tuple[Any, str]:
    """(interpreter module, "name version") of the runtime in use.

    `POLYPFED_RUNTIME=tflite-runtime` prefers the other one: a vendor's delegate is built against the runtime of its
    own system.

    Raises:
        MissingExtraError: neither is installed.
    """
    wanted = prefer or os.environ.get("POLYPFED_RUNTIME", "")
    for module, package in sorted(_RUNTIMES.items(), key=lambda pair: pair[1] != wanted):
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            _LOG.debug("%s cannot be imported: %s", module, error)
            continue
        return found, f"{package} {_version(package)}"
    raise MissingExtraError(
        "neither ai-edge-litert nor tflite-runtime is installed", remedy="Install it with: pip install 'polypfed[edge]'"
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # built into the system's Python without metadata
        return "of the system"


def interpreter(model: bytes, threads: int = 1, delegate: Delegate | None = None, where: object = "model") -> Any:
    """An interpreter with its tensors allocated. One thread of the program may use it at a time.

    Raises:
        ModelFileError: the file is damaged, or the runtime lacks an operator or its version.
        ConfigError: the delegate cannot be used.
        MissingExtraError: no runtime is installed.
    """
    graph = TFLite(model, where)
    module, name = runtime()
    options: dict[str, Any] = {"model_content": model, "num_threads": threads}
    if delegate is not None:
        options["experimental_delegates"] = [load(delegate)]
    try:
        runner = module.Interpreter(**options)
        runner.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        used = ", ".join(sorted({f"{o.name} v{o.version}" for o in graph.operators}))
        reason = " ".join(str(error).split())
        raise ModelFileError(
            f"{name} cannot run it ({reason})", where=where, remedy=f"The file uses {used}: update the runtime"
        ) from None
    if delegate is None and "tflite-runtime" in name and graph.tensors[graph.inputs[0]].type == 9:
        _LOG.warning("int8 on %s without a delegate is slower than fp32: install ai-edge-litert", name)
    return runner


def load(delegate: Delegate) -> Any:
    """The loaded delegate.

    Raises:
        ConfigError: no such file, not a library of this machine, no TFLite delegate, or it refuses to start.
    """
    remedy = "Name the vendor's library, or run without a delegate"
    if not Path(delegate.path).is_file():
        raise ConfigError("no such delegate", where=delegate.path, remedy=remedy)
    try:
        library = ctypes.CDLL(delegate.path)
    except OSError as error:
        raise ConfigError(f"is not a library this machine can load ({error})", where=delegate.path) from None
    if not hasattr(library, _SYMBOL):
        raise ConfigError(f"is not a TFLite delegate: it has no {_SYMBOL}", where=delegate.path, remedy=remedy)
    module, name = runtime()
    try:
        return module.load_delegate(delegate.path, dict(delegate.options))
    except (ValueError, RuntimeError, OSError) as error:
        raise ConfigError(f"{name} cannot start it ({error})", where=delegate.path, remedy=remedy) from None


def cores() -> int:
    """Processors this process may use: the default number of threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
