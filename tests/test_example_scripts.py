"""Every script in examples/ runs as a user would start it, and says what it promises."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {"encrypted": "tenseal", "own_model": "torchvision", "board_loop": "ai_edge_litert", "own_timm": "timm"}
NEEDS |= {"own_transformers": "transformers"}
GIVEN = {"board_loop": [str(ROOT / "tests" / "detect" / "mini-64.zip")]}


def out_of(name: str, folder: Path) -> str:
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / f"{name}.py"), *GIVEN.get(name, [])]
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def code_lines(name: str) -> int:
    """Lines that are neither empty nor part of the first docstring."""
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8").split('"""', 2)[2]
    return sum(bool(line.strip()) for line in text.splitlines())


def test_strategies_differ_as_their_papers_say(tmp_path: Path) -> None:
    """On sites with unequal curvature FedAvg ends beside the optimum, SCAFFOLD at it."""
    found = dict(re.findall(r"^(\w+) .*: ([0-9.e+-]+)$", out_of("compare_strategies", tmp_path), re.MULTILINE))
    assert float(found["FedAvg"]) > 0.1
    assert float(found["Scaffold"]) < 1e-5
    assert code_lines("compare_strategies") <= 20


def test_own_strategy(tmp_path: Path) -> None:
    assert "mean of the sites' optima: 1.0, found: 1.0" in out_of("own_strategy", tmp_path)
    assert code_lines("own_strategy") <= 30


def test_encrypted(tmp_path: Path) -> None:
    """The quantised mean is within a grid step of 0.5; the server holds nothing."""
    said = out_of("encrypted", tmp_path)
    assert "the server holds a model: False" in said
    values = re.findall(r"north holds \[([0-9.]+) +([0-9.]+)", said)[0]
    assert all(abs(float(v) - 0.5) < 0.02 for v in values)


def test_board_loop(tmp_path: Path) -> None:
    """Ten hard frames in a row, of which each second is kept."""
    said = out_of("board_loop", tmp_path)
    assert "serves round-1" in said
    assert "'frames': 10, 'hard': 10, 'kept': 5, 'errors': 0" in said
    assert (next(tmp_path.glob("*/samples.key")).stat().st_mode & 0o777) == 0o600


@pytest.mark.slow
def test_own_model(tmp_path: Path) -> None:
    rows = out_of("own_model", tmp_path).splitlines()
    assert float(rows[-1].split()[-1]) > 0.9


@pytest.mark.slow
def test_a_model_of_timm(tmp_path: Path) -> None:
    rows = out_of("own_timm", tmp_path).splitlines()
    assert float(rows[-1].split()[-1]) < 0.1


@pytest.mark.slow
def test_a_model_of_hugging_face(tmp_path: Path) -> None:
    rows = out_of("own_transformers", tmp_path).splitlines()
    assert float(rows[-1].split()[-1]) < 0.4


def test_every_script_is_tested() -> None:
    tested = set(re.findall(r'out_of\("(\w+)"', Path(__file__).read_text(encoding="utf-8")))
    assert {p.stem for p in SCRIPTS} == tested
