import os

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small runs are kept and thrown away here; none needs to survive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
