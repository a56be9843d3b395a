"""Planted markers over Flower's simulation: its messages, Ray's own logs, and the run's folder."""

import gc
import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import ray

from polypfed.backends import Flower
from polypfed.core.messages import Reply
from polypfed.report import write_report
from tests.planted import NAME, Watched, federation, search

pytestmark = [
    pytest.mark.live,
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("ultralytics"), reason="no ultralytics: install polypfed[yolo]"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),  # ray's
]


class WithLogs(Watched):
    """Also knows where Ray writes what its processes say."""

    logs: Path

    def exchange(self, tasks: Any, deadline: float) -> Iterator[Reply]:
        yield from super().exchange(tasks, deadline)
        self.logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"


def test_no_planted_name_leaves_a_site(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masked rounds in an actor; Ray's logs are read while they are there."""
    caplog.set_level(logging.DEBUG)
    run, backend = tmp_path / "run", WithLogs(Flower(workers=1))
    fed = federation(tmp_path / NAME, run, "secagg", monkeypatch)
    history = fed.run(2, backend, run)
    assert not history.failures
    write_report(run)
    logs = [path.read_bytes() for path in sorted(backend.logs.rglob("*")) if path.is_file()]
    assert len(logs) > 5
    search(run, backend.sent, caplog.text.encode(), *logs)
    gc.collect()  # what ray leaves open is reported here, not in the next test
