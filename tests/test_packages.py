"""Wheel and sdist, built as for an index, looked into, and used outside the checkout."""

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEIGHTS = (".pt", ".onnx", ".tflite", ".npz", ".safetensors")
pytestmark = pytest.mark.slow


def call(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, env=own | environment, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of hatchling, as a PYTHONPATH; empty where it is installed."""
    if find_spec("hatchling"):
        return ""
    folder = tmp_path_factory.mktemp("backend")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", folder]
    done = call(*pip, "hatchling>=1.27,<2", cwd=folder)
    if done.returncode:
        pytest.skip(f"no hatchling, and pip reaches no index: {done.stderr.strip().splitlines()[-1:]}")
    return str(folder)


def build(backend: str, source: Path, to: Path, target: str) -> Path:
    done = call(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", to, cwd=source, PYTHONPATH=backend)
    assert done.returncode == 0, done.stderr
    return max(to.iterdir(), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture(scope="module")
def wheel(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(backend, ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(backend, ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


def tracked() -> set[str]:
    done = call("git", "ls-files", cwd=ROOT)
    if done.returncode:
        pytest.skip("not a git checkout")
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def new(names: set[str]) -> set[str]:
    """Those that git does not ignore: what is about to be committed belongs in the package as well."""
    done = call("git", "ls-files", "--others", "--exclude-standard", cwd=ROOT)
    return names - set(done.stdout.splitlines())


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
        about = {Path(name).name for name in packed.namelist() if ".dist-info/" in name}
    assert new(names) == {name for name in tracked() if name.startswith("polypfed/")}
    assert not [name for name in names if name.endswith(WEIGHTS)]
    data = {name for name in names if not name.endswith(".py")}
    assert {
        "polypfed/py.typed",
        "polypfed/demo.toml",
        "polypfed/report/watch/watch.js",
        "polypfed/report/watch/watch.css",
        "polypfed/report/page.css",
        "polypfed/cli/starters/study.toml",
    } <= data
    assert {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "LICENSE", "NOTICE"} == about


def test_the_sdist_holds_what_its_tests_need_and_no_weights(sdist: Path) -> None:
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames() if not packed.getmember(name).isdir()}
    wanted = {name for name in tracked() if not name.startswith((".ci/", ".pre-commit"))}
    assert new(names) - {"PKG-INFO"} == wanted
    assert not [name for name in names if name.endswith(WEIGHTS)]


def test_the_sdist_makes_the_same_wheel(backend: str, sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as packed:
        packed.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    again = build(backend, source, tmp_path / "dist", "wheel")
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(wheel) as other:
        assert {i.filename: i.CRC for i in one.infolist()} == {i.filename: i.CRC for i in other.infolist()}


def test_the_wheel_is_used_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Installed into a folder; the run sees the code there, its data files, its command and its version."""
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", place]
    done = call(*pip, wheel, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(wheel) as packed:
        (metadata,) = (name for name in packed.namelist() if name.endswith("METADATA"))
        version = email.message_from_bytes(packed.read(metadata))["Version"]

    def says(*command: object) -> str:
        done = call(*command, cwd=tmp_path, PYTHONPATH=str(place))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert says(sys.executable, "-c", "import polypfed; print(polypfed.__file__)") == f"{place}/polypfed/__init__.py"
    assert "Usage: " in says(sys.executable, "-m", "polypfed", "--help")
    assert says(sys.executable, place / "bin" / "polypfed", "--version") == f"polypfed {version}"
    assert "study.toml" in says(sys.executable, "-m", "polypfed", "init", "researcher", "made")
    assert (tmp_path / "made" / "study.toml").is_file()
    run = "import polypfed as pf; c = [pf.NumpyClient(n, lambda x: x - 1, [0.0]) for n in 'ab']; "
    run += "print(pf.Federation(clients=c).run(2, pf.backends.Local()).model[0] > 0)"
    assert says(sys.executable, "-c", run) == "True"


def test_a_missing_extra_is_not_a_missing_module(wheel: Path) -> None:
    """Every extra that an error names is one that the wheel has."""
    with zipfile.ZipFile(wheel) as packed:
        (metadata,) = (name for name in packed.namelist() if name.endswith("METADATA"))
        extras = set(email.message_from_bytes(packed.read(metadata)).get_all("Provides-Extra", []))
        sources = [packed.read(name).decode() for name in packed.namelist() if name.endswith(".py")]
    named = {extra for text in sources for extra in re.findall(r'require\([^()]*extra="([^"]+)"', text)}
    assert named
    assert named <= extras
