"""A federation whose figures have more digits than float32, with a site that fails now and then."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import polypfed as pf
from polypfed.core.history import History


class Fails(pf.NumpyClient):
    """Cannot train in round 2; of what it says then, nothing may be passed on."""

    def fit(self, task: pf.Task) -> pf.Update:
        if task.round == 2:
            raise ValueError("/data/patient-4711.png cannot be read")
        return super().fit(task)


def federation(**settings: Any) -> pf.Federation:
    clients = [Fails("north", lambda x: x / 3 - 1, [0.0, 0.5]), pf.NumpyClient("south", lambda x: x / 7, [0.0, 0.5])]
    return pf.Federation(clients=clients, **{"retries": 0, **settings})


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., History]:
    """Three rounds, then resumed to five; `make` gives the listener of each part. All rows that were ever saved."""

    def both(make: Callable[[], Any], **settings: Any) -> History:
        with make() as listen:
            federation(**settings).run(3, pf.backends.Local(), tmp_path / "run", listen)
        with make() as listen:
            return federation(**settings).resume(tmp_path / "run", 5, pf.backends.Local(), listen)

    return both
