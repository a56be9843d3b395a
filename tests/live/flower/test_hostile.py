"""The matrix of hostile updates through Flower's simulation: records that a changed ClientApp sends from its actor.

One start of Ray serves the three strategies.
"""

import gc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from polypfed import Task, Update
from polypfed.backends import Flower
from polypfed.backends.flower import actor
from polypfed.backends.flower.records import ARRAYS, CONFIG, HEADER, METRICS, pack_reply
from polypfed.core.messages import Reply
from polypfed.privacy.keyring import provision
from tests import hostile
from tests.hostile import BAD, STRATEGIES
from tests.live.hosted import Hosted
from tests.problems import Odd, sites

pytestmark = [
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),  # ray's
]


def change(keys: Path, site: Odd, task: Task) -> None:
    """From now on this process, in which the site trains, changes what it sends."""
    if not isinstance(actor.pack_reply, Packing):
        actor.pack_reply = Packing(hostile.Hostile(keys))


class Packing:
    """In the place of `pack_reply` in the actor's process."""

    def __init__(self, bad: hostile.Hostile) -> None:
        self.bad = bad

    def __call__(self, reply: Reply) -> RecordDict:
        if reply.client != BAD or not isinstance(reply, Update):
            return pack_reply(reply)
        update, head = self.bad.answer(reply)
        arrays = {name: Array(np.ascontiguousarray(v)) for name, v in update.vectors.items()}
        metrics: dict[str, Any] = dict(update.metrics)
        config = ConfigRecord({HEADER: head + hostile.NO_VECTORS})
        return RecordDict({ARRAYS: ArrayRecord(arrays), METRICS: MetricRecord(metrics), CONFIG: config})


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    folder = tmp_path_factory.mktemp("hostile")
    clients: list[Any] = list(sites())
    provision([c.name for c in clients], folder)
    bad = partial(change, folder / "sites" / BAD / "keys")
    clients = [Odd(c, bad) if c.name == BAD else c for c in clients]
    flower = Flower(workers=1)
    flower.host(clients, folder)
    yield Hosted(flower, folder / "keys")
    flower.close()
    gc.collect()  # what ray leaves open is reported here, not in the next test


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_case_is_refused_and_the_model_is_the_honest_one(tmp_path: Path, backend: Hosted, strategy: str) -> None:
    hostile.check(backend.run(strategy, tmp_path), strategy, "flower")
