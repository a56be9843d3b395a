"""A tiny federation for real processes: `federation` for the server's server.toml, `client` for a site.toml."""

from pathlib import Path
from typing import Any

from polypfed import Federation
from polypfed.clients.base import agreed
from polypfed.core.reduce import Mean
from polypfed.privacy import Ledger, stages
from polypfed.strategies import FedAvg, Registry
from tests.live.sites import client, clients


def settings(strategy: str = "fedavg", mode: Any = "plain", **more: Any) -> dict[str, Any]:
    built = Registry.build({"name": strategy})
    given = {"strategy": built, "quorum": 2, "evaluate": "off", "deadline": 60.0, **more}
    if mode == "dp":  # all sites weigh alike
        spending = Ledger(epsilon=40.0, delta=1e-5)
        given |= {"stages": stages("dp", norm=1.0, multiplier=1.0), "budget": spending}
        given["strategy"] = FedAvg(reducer=Mean("uniform"))
    elif mode != "plain":
        cap = None if strategy == "scaffold" else 100
        given["stages"] = stages("plain", bits=3.0, cap=cap) if mode == "rounded" else stages(mode, cap=cap)
    return given


def federation(names: list[str], base: Path, strategy: str = "fedavg", rounds: int = 3, **more: Any) -> Any:
    return Federation(initial=agreed(clients(names)), **settings(strategy, **more)), rounds


__all__ = ["client", "clients", "federation", "settings"]
