"""Free memory goes back to the operating system."""

import ctypes
import platform
from pathlib import Path

import numpy as np
import pytest

from polypfed.core import heap


def resident_mb() -> float:
    rows = Path("/proc/self/status").read_text().splitlines()
    return int(next(row for row in rows if row.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_lies_below_a_block_in_use_is_returned() -> None:
    kept, large = [], []
    for _ in range(3000):  # 60 MB of blocks that glibc takes from its heap, each below one that stays
        large.append(np.ones(20_000, np.uint8))
        kept.append(np.ones(2000, np.uint8))
    before = resident_mb()
    large.clear()
    assert before - resident_mb() < 20, "glibc keeps it"
    heap.give_back()
    assert before - resident_mb() > 40
    assert len(kept) == 3000


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    heap._trim.cache_clear()

    def missing(_: object) -> None:
        raise TypeError

    monkeypatch.setattr(ctypes, "CDLL", missing)
    heap.give_back()
    heap._trim.cache_clear()
