"""The soak sees what grows and what stays open; the goal itself is measured by `benchmarks/soak.py`."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.problems import ROOT

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sys.modules.pop("soak", None)
    import soak

    return soak


def test_a_line_through_what_grows(soak: Any) -> None:
    found = soak.line([60 + 0.02 * i for i in range(90)], [6] * 89 + [7])
    assert found["mb_per_100"] == pytest.approx(2.0)
    assert found["error"] == pytest.approx(0.0, abs=1e-6)
    assert (found["files_start"], found["files_end"]) == (6, 7)
    row = {
        "case": "a",
        "warm": 10,
        "rounds": 90,
        "processes": 1,
        "date": "2026-01-01",
        "cpu": "x",
        "versions": {},
    } | found
    assert not soak.held(row)
    assert soak.held(row | {"mb_per_100": 1.0, "files_end": 6})
    assert not soak.held(row | {"mb_per_100": 1.0})
    assert "| a | 1 | 10 | 90 | +2.00 ± 0.00 |" in soak.table([row])
    before = {k: v for k, v in row.items() if k != "warm"} | {"rounds": 100}
    assert soak.table([before]) == soak.table([row])


@pytest.mark.parametrize("case", ["fedavg", "scaffold", "he"])
def test_a_short_run_keeps_no_file_open(soak: Any, case: str) -> None:
    if case == "he":
        pytest.importorskip("tenseal")
    found = soak.soak(case, 12, 3)
    assert (found["warm"], found["rounds"], len(found["memory_mb"])) == (3, 12, 15)
    assert min(found["memory_mb"]) > 1
    assert found["files_end"] <= found["files_start"]
