"""Tiny sites for real processes, which may hang, pause or die once."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from polypfed import Federation, NumpyClient, Task, Update
from polypfed.backends import Local
from tests.problems import Odd, sites


def clients(names: list[str]) -> list[NumpyClient]:
    made = sites(len(names))
    for client, name in zip(made, sorted(names), strict=True):
        client.name = name
    return made


def client(name: str, base: Path, names: list[str], act: str = "", when: int = 0) -> Any:
    """The site's client; in round `when` it first does `act`."""
    own = next(c for c in clients(names) if c.name == name)
    return Odd(own, Act(act, base), (when,)) if act else own


def digest(names: list[str], rounds: int, **settings: Any) -> str:
    """SHA-256 of the model of the same federation in this process."""
    model = Federation(clients=clients(names), **settings).run(rounds, Local()).model
    assert model is not None
    return hashlib.sha256(model.tobytes()).hexdigest()


WRONG = {"nan": np.array([0, np.nan, 0], np.float32), "shape": np.zeros(5, np.float32)}


class Act:
    """Writes its process id to BASE/began, then hangs, ends its process or answers nonsense; only the first time."""

    def __init__(self, act: str, base: Path) -> None:
        self.act, self.base = act, base

    def __call__(self, site: Odd, task: Task) -> Update | None:
        mark = self.base / "began"
        if mark.exists():
            return None
        mark.write_text(str(os.getpid()))
        if self.act == "hang":
            time.sleep(600)
        elif self.act == "pause":
            time.sleep(8)
        elif self.act == "die":
            os._exit(9)
        elif self.act in WRONG:
            return Update(site.name, task.round, {"delta": WRONG[self.act]}, 9)
        return None
