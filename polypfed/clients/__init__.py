"""What trains: the Client protocol and its implementations. Those that need torch are imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from polypfed.clients.base import Client, HasInitial
from polypfed.clients.numpy_client import NumpyClient
from polypfed.clients.site import Site
from polypfed.core.extras import require

if TYPE_CHECKING:
    from polypfed.clients.detector_client import DetectorClient as DetectorClient
    from polypfed.clients.edge_client import EdgeClient as EdgeClient
    from polypfed.clients.torch_client import TorchClient as TorchClient
    from polypfed.clients.vectorised import Vectorised as Vectorised

_LAZY = {
    "TorchClient": "polypfed.clients.torch_client",
    "DetectorClient": "polypfed.clients.detector_client",
    "EdgeClient": "polypfed.clients.edge_client",
    "Vectorised": "polypfed.clients.vectorised",
}

__all__ = ["Client", "DetectorClient", "EdgeClient", "HasInitial", "NumpyClient", "Site", "TorchClient", "Vectorised"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        require("torch", extra="yolo")
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
