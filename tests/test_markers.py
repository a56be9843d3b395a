"""Names and metadata planted in a site's images, keys and folders, searched for in all that leaves it.

Over Flower's simulation: tests/live/flower/test_markers.py.
"""

import logging
from importlib.util import find_spec
from pathlib import Path

import pytest

from polypfed.backends import Local
from polypfed.report import write_report
from tests.planted import META, NAME, Watched, federation, search, site

pytestmark = pytest.mark.skipif(not find_spec("ultralytics"), reason="no ultralytics: install polypfed[yolo]")


@pytest.mark.parametrize("mode", ["plain", "he", "secagg"])
def test_no_planted_name_leaves_a_site(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    if mode == "he":
        pytest.importorskip("tenseal")
    caplog.set_level(logging.DEBUG)
    run, backend = tmp_path / "run", Watched(Local())
    fed = federation(tmp_path / NAME, run, mode, monkeypatch)
    fed.run(1, backend, run)
    assert not fed.resume(run, 2, backend).failures
    write_report(run)
    search(run, backend.sent, caplog.text.encode())


def test_the_markers_are_where_they_were_planted(tmp_path: Path) -> None:
    """So that the search above could have found them."""
    path = next((site(tmp_path, 0) / "images").iterdir())
    assert NAME in path.name
    assert META.encode() in path.read_bytes()
