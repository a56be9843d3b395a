"""The membership test finds what is known by heart, and nothing where nothing was trained on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.problems import ROOT

pytest.importorskip("torch")


@pytest.fixture
def membership(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import membership

    return membership


def test_the_auc_is_scikit_learns(membership: Any) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 20, 50), draw.integers(3, 30, 80)  # with ties
    wanted = metrics.roc_auc_score([1] * 50 + [0] * 80, np.concatenate([a, b]))
    assert membership.auc(a, b) == pytest.approx(wanted)


def test_the_control_is_found_and_the_null_is_not(membership: Any) -> None:
    over, null = (membership.toy(membership.SETTINGS[name], 0) for name in ("over", "null"))
    assert min(over["final"], over["local"]) > 0.75
    assert all(abs(null[score] - 0.5) < 0.12 for score in membership.SCORES), "80 members: deviation 0.035"


def test_ciphertexts_and_noise_at_the_site_tell_the_server_nothing(membership: Any) -> None:
    pytest.importorskip("tenseal")
    pytest.importorskip("dp_accounting")
    sealed = membership.toy(membership.SETTINGS["over, he"], 0)
    assert sealed["final"] > 0.75, "the sites' own model is what it is"
    assert max(sealed[score] for score in ("local", "drop", "gradient")) < 0.65  # random keys: four deviations
    noisy = membership.toy(membership.SETTINGS["over, dp, site, z = 1"], 0)
    assert max(noisy[score] for score in ("final", "local")) < 0.62


def test_a_table_of_the_rows(membership: Any, tmp_path: Path) -> None:
    about = {"date": "2026-01-01", "cpu": "a processor", "versions": {"numpy": "2"}}
    rows = [{"setting": "over", "seed": i, "final": 0.8 + i / 10, "local": 0.9, "epsilon": None} for i in range(2)]
    line = next(x for x in membership.table([r | about for r in rows]).splitlines() if x.startswith("| over"))
    assert [c.strip() for c in line.strip("|").split("|")] == [
        "over",
        "0.85 ± 0.07",
        "0.90 ± 0.00",
        "",
        "",
        "",
        "",
        "2",
    ]
