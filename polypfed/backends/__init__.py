"""What carries a round: `Local` on this machine, `Flower` over Flower, `NVFlare` over NVFlare.

A backend is one narrow method and holds no mathematics. Those that need an engine are imported on first use.
"""

from typing import TYPE_CHECKING, Any

from polypfed.backends.local import Local
from polypfed.core.extras import require
from polypfed.federation import Backend, Host

if TYPE_CHECKING:
    from polypfed.backends.flower import Flower as Flower
    from polypfed.backends.nvflare import NVFlare as NVFlare

__all__ = ["Backend", "Flower", "Host", "Local", "NVFlare"]


def __getattr__(name: str) -> Any:
    if name == "Flower":
        require("flwr", extra="flower")
        from polypfed.backends.flower import Flower

        return Flower
    if name == "NVFlare":
        from polypfed.backends.nvflare import NVFlare  # its engine runs in other processes

        return NVFlare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
