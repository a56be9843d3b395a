"""A wheelhouse: made, checked, installed from without an index; first with small wheels of our own, then with pip's."""

import os
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polypfed.cli import app
from polypfed.core.errors import ConfigError

ROOT = Path(__file__).parents[2]
NOWHERE = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0"}
COMMAND = "def main():\n    import torch\n    print('polypfed of the test with', torch.NAME)\n"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip with no configuration but ours, and no index."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in NOWHERE.items():
        monkeypatch.setenv(name, value)


def wheel(folder: Path, name: str, version: str, code: str, about: str = "", scripts: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(f"{name}/__init__.py", code)
        packed.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{about}")
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{info}/entry_points.txt", scripts)
        packed.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A wheel called polypfed, whose extra `yolo` needs torch."""
    about = "Provides-Extra: yolo\nRequires-Dist: torch; extra == 'yolo'\n"
    scripts = "[console_scripts]\npolypfed = polypfed:main\n"
    return wheel(tmp_path / "own", "polypfed", "9.9", COMMAND, about, scripts)


@pytest.fixture
def index(tmp_path: Path) -> str:
    """The address of an index that has two builds of torch; pins.txt beside it, in which one of them is meant."""
    folder = tmp_path / "simple" / "torch"
    found = [wheel(folder, "torch", version, f"NAME = {version!r}\n") for version in ("1.0", "1.0+cpu")]
    (tmp_path / "pins.txt").write_text("torch==1.0\n")
    (folder / "index.html").write_text("".join(f'<a href="{p.name.replace("+", "%2B")}">{p.name}</a>' for p in found))
    return folder.parent.as_uri()


def made(to: Path, *words: object) -> str:
    done = CliRunner().invoke(app, ["bundle", str(to), *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def install(bundle: Path, to: Path) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHONPATH"))}
    environment |= NOWHERE | {"PYTHON": sys.executable}
    return subprocess.run(
        [bundle / "install.sh", to], cwd=to.parent, env=environment, capture_output=True, text=True, timeout=200
    )


@pytest.mark.slow
def test_the_index_named_decides_the_build_and_the_list_pins_it(
    offline: None, own: Path, index: str, tmp_path: Path
) -> None:
    said = made(
        tmp_path / "b", "--extra", "yolo", "--source", own, "--index-url", index, "--constraints", tmp_path / "pins.txt"
    )
    lines = (tmp_path / "b" / "requirements.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["polypfed[yolo]==9.9", "torch==1.0+cpu"]
    for line, file in zip(lines, sorted((tmp_path / "b" / "wheels").iterdir()), strict=True):
        assert line.endswith(f"--hash=sha256:{sha256(file.read_bytes()).hexdigest()}")
    assert sha256((tmp_path / "b" / "SHA256SUMS").read_bytes()).hexdigest() in said
    assert "http" not in (tmp_path / "b" / "install.sh").read_text()
    done = install(tmp_path / "b", tmp_path / "env")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "polypfed of the test with 1.0+cpu\n"


@pytest.mark.slow
@pytest.mark.parametrize("who", ["sums", "pip"])
def test_a_wheel_that_was_changed_is_not_installed(
    offline: None, own: Path, index: str, tmp_path: Path, who: str
) -> None:
    """By the checksums; and where somebody has mended these, by pip's hashes."""
    bundle = tmp_path / "b"
    made(bundle, "--extra", "yolo", "--source", own, "--index-url", index, "--constraints", tmp_path / "pins.txt")
    torch = next((bundle / "wheels").glob("torch-*"))
    before = torch.read_bytes()
    wheel(torch.parent, "torch", "1.0+cpu", "NAME = 'evil'\n")
    assert torch.read_bytes() != before
    if who == "pip":
        sums = (bundle / "SHA256SUMS").read_text()
        (bundle / "SHA256SUMS").write_text(
            sums.replace(sha256(before).hexdigest(), sha256(torch.read_bytes()).hexdigest())
        )
    done = install(bundle, tmp_path / "env")
    assert done.returncode != 0
    assert ("torch-1.0+cpu" if who == "sums" else "DO NOT MATCH THE HASHES") in done.stdout + done.stderr
    assert not (tmp_path / "env" / "bin" / "polypfed").exists()


def test_another_machine_is_told_so(offline: None, own: Path, tmp_path: Path) -> None:
    made(tmp_path / "b", "--source", own, "--platform", "aarch64", "--python", "3.13")
    done = install(tmp_path / "b", tmp_path / "env")
    assert done.returncode == 1
    assert "This bundle is for Python 3.13 on aarch64" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--extra", "nonsense"], "--extra: no such extra: nonsense. Known: "),
        (["--platform", "vax"], "--platform: unknown platform 'vax'. Known: x86_64, aarch64"),
        (["--extra", "yolo"], "pip: cannot fetch what polypfed needs (Cannot install polypfed[yolo]==9.9 because"),
        (["--source", "no"], "pip: cannot build polypfed's wheel ("),
    ],
)
def test_what_a_mistake_is_told(offline: None, own: Path, tmp_path: Path, words: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        CliRunner().invoke(app, ["bundle", f"{tmp_path}/b", "--source", str(own), *words], catch_exceptions=False)
    assert str(error.value).startswith(told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]  # nothing half made stays


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("kept")
    with pytest.raises(ConfigError, match="is not empty"):
        CliRunner().invoke(app, ["bundle", str(tmp_path)], catch_exceptions=False)


# ------------------------------------------------------------------------------------------- with what pip really has
@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> None:
    probe = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", tmp_path_factory.mktemp("probe")]
    done = subprocess.run([*probe, "iniconfig"], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"pip reaches no index: {done.stderr.strip().splitlines()[-1:]}")


@pytest.mark.slow
@pytest.mark.usefixtures("reached")
def test_polypfed_itself_bundled_and_installed_without_an_index(tmp_path: Path) -> None:
    made(tmp_path / "b")
    done = install(tmp_path / "b", tmp_path / "env")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("polypfed 0.")
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    for line in (tmp_path / "b" / "requirements.txt").read_text().splitlines():
        name, _, version = line.split()[0].partition("==")
        assert name == "polypfed" or pins[name] == version
    python = tmp_path / "env" / "bin" / "python"
    code = "import polypfed, sys; print(polypfed.__file__.startswith(sys.prefix))"
    told = subprocess.run([python, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, check=True)
    assert told.stdout == "True\n"


@pytest.mark.slow
@pytest.mark.usefixtures("reached")
def test_a_bundle_for_boards_holds_wheels_for_boards(tmp_path: Path) -> None:
    made(tmp_path / "b", "--extra", "edge", "--extra", "release", "--platform", "aarch64")
    names = [path.name for path in (tmp_path / "b" / "wheels").iterdir()]
    assert all(name.endswith("-any.whl") or "aarch64" in name for name in names)
    built = {name.split("-")[0] for name in names if "aarch64" in name}
    assert {"numpy", "ai_edge_litert", "opencv_python_headless", "cryptography", "pillow"} <= built
