"""What carries a round: `Local` on this machine. A backend is one narrow method and holds no mathematics."""

from polypfed.backends.local import Local
from polypfed.federation import Backend, Host

__all__ = ["Backend", "Host", "Local"]
