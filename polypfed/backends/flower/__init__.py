"""Flower: the same federation over Flower's simulation engine and over a SuperLink with its SuperNodes.

Only this room imports flwr. `Flower` hosts clients in the simulation engine of this machine; `server_app` and
`client_app` are the two ends of a deployment, and `deploy` writes everything that one needs.
"""

import os
from typing import TYPE_CHECKING, Any

from polypfed.core.extras import require

# Read when flwr and ray are loaded. What is set already is left alone.
for _name, _value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else ray warns at each start, without a GPU too
}.items():
    os.environ.setdefault(_name, _value)

require("flwr", extra="flower")

if TYPE_CHECKING:
    from polypfed.backends.flower.grid import OverGrid as OverGrid
    from polypfed.backends.flower.simulation import Flower as Flower

__all__ = ["Flower", "OverGrid"]


def __getattr__(name: str) -> Any:
    """On first use: a site needs neither ray nor the server's half."""
    if name == "Flower":
        require("ray", extra="flower")
        from polypfed.backends.flower.simulation import Flower

        return Flower
    if name == "OverGrid":
        from polypfed.backends.flower.grid import OverGrid

        return OverGrid
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
