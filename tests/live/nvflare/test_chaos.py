"""As tests/live/flower/test_chaos.py, of an NVFlare deployment over mutual TLS."""

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.live.nvflare.troubled import Troubled

pytestmark = [
    pytest.mark.live,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("POLYPFED_LONG" not in os.environ, reason="a minute for a seed; set POLYPFED_LONG"),
]


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Troubled]:
    with closing(Troubled(tmp_path_factory.mktemp("chaos"))) as found:
        yield found


@pytest.mark.parametrize("seed", range(6))
def test_no_hang_and_no_other_model(troubled: Troubled, seed: int) -> None:
    row = troubled.run(seed)
    assert row["pieces"] > 100, row  # it all went through the proxy
    assert row["ended"] in ("same", "without", "failed"), row
