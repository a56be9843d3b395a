"""docs/side-by-side.md: its table is what the script counts, and the programs counted do what they say."""

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
NEEDS = {"polypfed": "torch", "flower": "flwr", "nvflare": "nvflare"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "side_by_side"))
    for name in ("run", "problem"):
        sys.modules.pop(name, None)
    import run

    yield run  # type: ignore[misc]
    sys.modules.pop("run")


def test_the_table_is_what_is_counted(script: ModuleType) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.table() in text
    assert script.page(text) == text


def test_what_counts_as_a_line(script: ModuleType, tmp_path: Path) -> None:
    python, shell = tmp_path / "a.py", tmp_path / "a.sh"
    body = 'x = 1  # this\ndef f():\n    """Not this."""\n    return (\n        x\n    )\n'
    python.write_text(f'"""Not this,\nnor this."""\n\n# nor this\n{body}')
    shell.write_text("# not this\nlong \\\n    command &\n\nanother\n")
    assert script.code(python) == ["x = 1  # this", "def f():", "    return (", "        x", "    )"]
    assert script.code(shell) == ["long command &", "another"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", NEEDS)
def test_the_new_algorithm_ends_alike_in_all_three(script: ModuleType, engine: str) -> None:
    if find_spec(NEEDS[engine]) is None:
        pytest.skip(f"no {NEEDS[engine]}")
    assert script.run("algorithm", engine)["Final"] == pytest.approx(5.65646, abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch") is None, reason="no torch")
def test_our_comparison(script: ModuleType) -> None:
    """SCAFFOLD ends at the optimum of the two sites' common loss, FedAvg beside it."""
    import numpy as np
    from problem import SITES, data, score

    x, y = (np.concatenate([np.asarray(data(site)[part]) for site in range(SITES)]) for part in (0, 1))
    best = score(np.linalg.lstsq(x, y, rcond=None)[0])
    found = script.run("compare", "polypfed")
    assert sorted(found) == ["FedAdam", "FedAvg", "Scaffold"]
    assert found["Scaffold"] == pytest.approx(best, rel=2e-4)
    assert found["FedAvg"] > best * 1.01
