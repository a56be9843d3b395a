"""The matrix of hostile updates through NVFlare's simulator: results that a changed site process sends.

One start of the simulator serves the three strategies.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from polypfed.backends.nvflare import NVFlare
from polypfed.privacy.keyring import provision
from tests import hostile
from tests.hostile import BAD, STRATEGIES
from tests.live.hosted import Hosted
from tests.problems import sites

pytestmark = pytest.mark.live
FILTER = "tests.live.nvflare.hostile_filter.HostileFilter"


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    folder = tmp_path_factory.mktemp("hostile")
    provision([c.name for c in sites()], folder)
    engine = NVFlare(workers=2, filters=[{"path": FILTER, "args": {"keys": str(folder / "sites" / BAD / "keys")}}])
    engine.host(sites(), folder)
    yield Hosted(engine, folder / "keys")
    engine.close()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_case_is_refused_and_the_model_is_the_honest_one(tmp_path: Path, backend: Hosted, strategy: str) -> None:
    hostile.check(backend.run(strategy, tmp_path), strategy, "nvflare")
