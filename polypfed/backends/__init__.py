"""What carries a round: `Local` on this machine, `Flower` over Flower. A backend is one narrow method and holds no
mathematics. Those that need an engine are imported on first use.
"""

from typing import TYPE_CHECKING, Any

from polypfed.backends.local import Local
from polypfed.core.extras import require
from polypfed.federation import Backend, Host

if TYPE_CHECKING:
    from polypfed.backends.flower import Flower as Flower

__all__ = ["Backend", "Flower", "Host", "Local"]


def __getattr__(name: str) -> Any:
    if name == "Flower":
        require("flwr", extra="flower")
        from polypfed.backends.flower import Flower

        return Flower
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
