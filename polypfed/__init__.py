"""polypfed: federated learning for colon-polyp detectors. Images never leave a site.

Importing this loads next to nothing: each public name loads its room on first use. A device that only detects starts in
half the time for it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polypfed import backends, clients, data, privacy, select, strategies
    from polypfed.clients import Client, NumpyClient
    from polypfed.core.errors import PolypfedError
    from polypfed.core.history import History
    from polypfed.core.messages import Evaluation, Failure, Task, Update
    from polypfed.core.model import ModelSpec
    from polypfed.core.reduce import Mean
    from polypfed.core.robust import GeometricMedian, Krum, Median, MultiKrum, NormClip, TrimmedMean
    from polypfed.federation import Federation

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Evaluation",
    "Failure",
    "Federation",
    "GeometricMedian",
    "History",
    "Krum",
    "Mean",
    "Median",
    "ModelSpec",
    "MultiKrum",
    "NormClip",
    "NumpyClient",
    "PolypfedError",
    "Task",
    "TrimmedMean",
    "Update",
    "backends",
    "clients",
    "data",
    "privacy",
    "select",
    "strategies",
]

_ROOMS = {"backends", "clients", "data", "privacy", "select", "strategies"}
_HOMES = {"Client": "clients", "NumpyClient": "clients", "PolypfedError": "core.errors", "History": "core.history"}
_HOMES |= dict.fromkeys(("Evaluation", "Failure", "Task", "Update"), "core.messages")
_HOMES |= {"ModelSpec": "core.model", "Mean": "core.reduce", "Federation": "federation"}
_HOMES |= dict.fromkeys(("GeometricMedian", "Krum", "Median", "MultiKrum", "NormClip", "TrimmedMean"), "core.robust")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"polypfed.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'polypfed' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"polypfed.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
