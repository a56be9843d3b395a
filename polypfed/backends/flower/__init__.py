"""Flower: the same federation over Flower's simulation engine and over a SuperLink with its SuperNodes.

Only this room imports flwr. `Flower` hosts clients in the simulation engine of this machine; `server_app` and
`client_app` are the two ends of a deployment, and `deploy` writes everything that one needs.
"""

import os

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

from polypfed.backends.flower.grid import OverGrid  # noqa: E402 - the switches above come first
from polypfed.backends.flower.simulation import Flower  # noqa: E402

__all__ = ["Flower", "OverGrid"]
