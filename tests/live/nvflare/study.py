"""A tiny federation for real processes: `federation` for the server's settings, `client` for a site's.

As a file of its own it also goes with a job in SimEnv and PocEnv, so it has no neighbours but the package `tests`.
"""

import os
import time
from pathlib import Path
from typing import Any

from polypfed import Federation, NumpyClient, Task
from polypfed.clients.base import agreed
from polypfed.strategies.registry import Registry
from tests.problems import Odd, sites


def clients(names: list[str]) -> list[NumpyClient]:
    made = sites(len(names))
    for client, name in zip(made, sorted(names), strict=True):
        client.name = name
    return made


def settings(strategy: str = "scaffold", **more: Any) -> dict[str, Any]:
    return {"strategy": Registry.build({"name": strategy}), "quorum": 2, "evaluate": "matrix", **more}


def federation(names: list[str], base: Path, rounds: int = 3, **more: Any) -> tuple[Federation, int]:
    return Federation(initial=agreed(clients(names)), **settings(**more)), rounds


def client(name: str, base: Path, names: list[str], act: str = "", when: int = 0) -> Any:
    """The site's client; in round `when` it first does `act`, once."""
    own = next(c for c in clients(names) if c.name == name)
    return Odd(own, Act(act, base), (when,)) if act else own


class Act:
    """Writes its process id to BASE/began, then hangs, pauses, or ends its process; only the first time."""

    def __init__(self, act: str, base: Path) -> None:
        self.act, self.base = act, base

    def __call__(self, site: Odd, task: Task) -> None:
        mark = self.base / "began"
        if mark.exists():
            return
        mark.write_text(str(os.getpid()))
        if self.act == "hang":
            time.sleep(600)
        elif self.act == "pause":
            time.sleep(8)
        elif self.act == "die":
            os._exit(9)
