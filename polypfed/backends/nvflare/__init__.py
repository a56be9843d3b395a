"""NVFlare: the same rounds in its simulator, as a Recipe, and in a provisioned deployment.

Names are imported on first use: `NVFlare` itself needs no engine in the caller's process, the others do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polypfed.backends.nvflare.simulation import NVFlare as NVFlare

__all__ = ["NVFlare"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("polypfed.backends.nvflare.simulation"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
