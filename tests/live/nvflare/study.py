"""A tiny federation for real processes: `federation` for the server's settings, `client` for a site's.

As a file of its own it also goes with a job in SimEnv and PocEnv, so it has no neighbours but the package `tests`.
"""

from pathlib import Path
from typing import Any

from polypfed import Federation
from polypfed.clients.base import agreed
from polypfed.privacy.modes import stages
from polypfed.strategies.registry import Registry
from tests.live.sites import client, clients


def settings(strategy: str = "scaffold", privacy: Any = "plain", **more: Any) -> dict[str, Any]:
    chosen = {"strategy": Registry.build({"name": strategy}), "quorum": 2, "evaluate": "matrix", **more}
    if privacy != "plain":
        cap = 100 if Registry.build({"name": strategy}).reducer.weights == "examples" else None
        chosen |= {"evaluate": "global", "stages": stages(privacy, cap=cap, bound=1.0, bits=11)}
    return chosen


def federation(names: list[str], base: Path, rounds: int = 3, **more: Any) -> tuple[Federation, int]:
    return Federation(initial=agreed(clients(names)), **settings(**more)), rounds


__all__ = ["client", "clients", "federation", "settings"]
