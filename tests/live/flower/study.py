"""A tiny federation for real processes: `federation` for the server's server.toml, `client` for a site.toml."""

from pathlib import Path
from typing import Any

from polypfed import Federation
from polypfed.clients.base import agreed
from polypfed.strategies import Registry
from tests.live.sites import client, clients


def settings(strategy: str = "fedavg", **more: Any) -> dict[str, Any]:
    return {"strategy": Registry.build({"name": strategy}), "quorum": 2, "evaluate": "off", "deadline": 60.0, **more}


def federation(names: list[str], base: Path, strategy: str = "fedavg", rounds: int = 3, **more: Any) -> Any:
    return Federation(initial=agreed(clients(names)), **settings(strategy, **more)), rounds


__all__ = ["client", "clients", "federation", "settings"]
