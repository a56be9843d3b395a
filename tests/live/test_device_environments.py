"""The device's own tests in environments of their own: the extra `edge` alone, and tflite-runtime with NumPy 1.

Each is made by pip in half a minute; where pip reaches no index, these tests are left out.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.live, pytest.mark.timeout(600)]
TESTS = ["tests/detect", "tests/data/store", "tests/clients/test_device.py", "tests/backends/test_device.py"]
TESTS += ["tests/cli/test_detect.py", "tests/cli/test_samples.py"]
PYTEST = ["pytest", "pytest-timeout", "hypothesis"]
OLD = ["tflite-runtime==2.14.0", "numpy<2", "opencv-python-headless<4.12", "cryptography", "pillow", "safetensors"]
OLD += ["pydantic", "rich", "typer<0.21"]


def call(*command: object, timeout: float = 400.0) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "POLYPFED_DATA")}
    environment |= {"PYTHONPATH": str(ROOT), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(
        [str(c) for c in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module", autouse=True)
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("probe")
    done = call(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "iniconfig", timeout=60)
    if done.returncode:
        pytest.skip(f"pip reaches no index: {done.stderr.strip().splitlines()[-1:]}")


def installed(folder: Path, *wanted: str) -> Path:
    made = call(sys.executable, "-m", "venv", folder)
    assert made.returncode == 0, made.stderr
    python = folder / "bin" / "python"
    done = call(python, "-m", "pip", "install", "-q", "--no-compile", *wanted, *PYTEST)
    assert done.returncode == 0, done.stderr
    return python


def passes(python: Path) -> None:
    """The tests pass there, a good number of them, and without what a board does not have."""
    names = ("torch", "flwr", "nvflare", "ultralytics")
    without = f"import importlib.util, sys; sys.exit(any(map(importlib.util.find_spec, {names})))"
    assert call(python, "-c", without).returncode == 0
    done = call(
        python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not live and not slow", *DESELECTED, *TESTS
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 140, done.stdout[-500:]


# It is not of the device: it makes the converter's environment.
DESELECTED = ["--deselect", "tests/detect/test_export.py::test_a_failing_installation_is_one_line"]


def test_the_extra_edge_alone(tmp_path: Path) -> None:
    passes(installed(tmp_path / "edge", "-c", str(ROOT / "constraints.txt"), f"{ROOT}[edge]"))


def test_the_old_runtime_with_numpy_1(tmp_path: Path) -> None:
    python = installed(tmp_path / "old", *OLD)
    says = "import numpy; from polypfed.detect.runtime import runtime; print(numpy.__version__, runtime()[1])"
    assert re.fullmatch(r"1\.[0-9.]+ tflite-runtime 2\.14\.0\n", call(python, "-c", says).stdout)
    passes(python)
