"""`polypfed bundle`: polypfed and all it needs in a folder, for machines without a network.

pip resolves and fetches; what is written beside the wheels is a list of requirements with hashes, checksums, and the
script that installs from the folder alone.
"""

import importlib.metadata
import os
import platform as machine
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Annotated

import typer

from polypfed.cli.init import starter
from polypfed.cli.sbom import normal
from polypfed.cli.show import console
from polypfed.core.errors import ConfigError
from polypfed.core.files import write_atomic

_ROOT = Path(__file__).resolve().parents[2]
_GLIBC = (17, 27, 28, 31, 34, 35)  # those that wheels on indexes are tagged with; pip takes a list, not a least one
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def bundle(
    directory: Annotated[Path, typer.Argument(help="Folder to make; must not exist, or be empty.")],
    extra: Annotated[list[str] | None, typer.Option(help="yolo, edge, flower, ...; once per extra.")] = None,
    platform: Annotated[str, typer.Option(help="x86_64 or aarch64, with Linux.")] = machine.machine(),
    python: Annotated[str, typer.Option(help="Version of Python there.")] = _PYTHON,
    index_url: Annotated[str | None, typer.Option(help="Index to ask instead of pip's own, as for CPU torch.")] = None,
    extra_index_url: Annotated[list[str] | None, typer.Option(help="Index to ask as well.")] = None,
    constraints: Annotated[Path | None, typer.Option(help="Exact versions; by default the checkout's.")] = None,
    source: Annotated[Path | None, typer.Option(help="polypfed's wheel or source; by default the checkout.")] = None,
) -> None:
    """Put polypfed, its extras and a script that installs them into a folder, for machines without a network."""
    extras = _known(extra or [])
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError("is not empty", where=directory, remedy="Choose another folder, or remove it")
    if constraints is None and (_ROOT / "constraints.txt").is_file():
        constraints = _ROOT / "constraints.txt"
    ask = ["--index-url", index_url] if index_url else []
    ask += [word for url in extra_index_url or [] for word in ("--extra-index-url", url)]
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".polypfed-bundle-", dir=directory.parent) as temporary:
        made = Path(temporary) / "bundle"
        (made / "wheels").mkdir(parents=True)
        with console.status("fetching wheels"):
            wanted = _polypfed(made / "wheels", source, extras, ask)
            pins = ["--constraint", str(constraints)] if constraints else []
            _pip([*_fetch(made / "wheels", platform, python), *pins, *ask, wanted], "fetch what polypfed needs")
        _describe(made, extras, platform, python)
        made.chmod(0o755)
        made.rename(directory)
    _tell(directory, constraints)


def _known(extras: Sequence[str]) -> list[str]:
    known = importlib.metadata.metadata("polypfed").get_all("Provides-Extra") or []
    if unknown := sorted(set(extras) - set(known)):
        raise ConfigError(f"no such extra: {', '.join(unknown)}", where="--extra", remedy=f"Known: {', '.join(known)}")
    return sorted(set(extras))


def _polypfed(wheels: Path, source: Path | None, extras: Sequence[str], ask: Sequence[str]) -> str:
    """polypfed's own wheel, put into `wheels`, as a requirement; where there is no source, pip is to find it."""
    name = f"polypfed[{','.join(extras)}]" if extras else "polypfed"
    if source is None and not (_ROOT / "pyproject.toml").is_file():
        return f"{name}=={importlib.metadata.version('polypfed')}"
    _pip(["wheel", "--no-deps", "-w", str(wheels), *ask, str(source or _ROOT)], "build polypfed's wheel")
    found = list(wheels.glob("polypfed-*.whl"))
    if not found:
        raise ConfigError("is not polypfed", where=source, remedy="Give polypfed's wheel, sdist or source folder")
    return f"{name} @ {found[0].resolve().as_uri()}"


def _fetch(wheels: Path, platform: str, python: str) -> list[str]:
    """pip's words: at home it builds what has no wheel, for another machine it takes wheels only."""
    if platform not in ("x86_64", "aarch64"):
        raise ConfigError(f"unknown platform {platform!r}", where="--platform", remedy="Known: x86_64, aarch64")
    if (platform, python) == (machine.machine(), _PYTHON):
        return ["wheel", "--prefer-binary", "-w", str(wheels)]
    tags = [word for minor in _GLIBC for word in ("--platform", f"manylinux_2_{minor}_{platform}")]
    tags += ["--platform", f"manylinux2014_{platform}"]
    return ["download", "-d", str(wheels), "--only-binary", ":all:", "--python-version", python, *tags]


def _pip(words: list[str], what: str) -> None:
    command = [sys.executable, "-m", "pip", words[0], "--quiet", "--disable-pip-version-check", *words[1:]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"cannot {what} ({error})", where="pip") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and "for help visit" not in line]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines
        said = "; ".join(line.removeprefix("ERROR: ").strip() for line in errors[:2]) or f"code {done.returncode}"
        raise ConfigError(
            f"cannot {what} ({said[:600]})",
            where="pip",
            remedy="Look at the index pip asks, --constraints and --platform; is pip installed in this environment?",
        )


def _describe(made: Path, extras: Sequence[str], platform: str, python: str) -> None:
    """Write `requirements.txt`, `install.sh`, `README.md` and `SHA256SUMS`."""
    wheels = sorted((made / "wheels").iterdir())
    odd = [path.name for path in wheels if path.suffix != ".whl"]
    if odd:
        raise ConfigError(f"no wheel is to be had of {', '.join(odd)}", where="pip")
    own = f"[{','.join(extras)}]" if extras else ""
    about = {"platform": platform, "python": python, "name": f"polypfed{own}"}
    write_atomic(made / "requirements.txt", ("\n".join(_requirements(wheels, own)) + "\n").encode())
    write_atomic(made / "install.sh", starter("install.sh").format(**about).encode(), mode=0o755)
    write_atomic(made / "README.md", starter("bundle.md").format(**about, count=len(wheels)).encode())
    files = sorted(path for path in made.rglob("*") if path.is_file())
    sums = "".join(f"{_sha256(path)}  {path.relative_to(made)}\n" for path in files)
    write_atomic(made / "SHA256SUMS", sums.encode())


def _requirements(wheels: Sequence[Path], own: str) -> Iterator[str]:
    for path in wheels:
        name, version = path.name.split("-")[:2]
        extras = own if name == "polypfed" else ""
        yield f"{normal(name)}{extras}=={version} --hash=sha256:{_sha256(path)}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _tell(directory: Path, constraints: Path | None) -> None:
    wheels = list((directory / "wheels").iterdir())
    size = sum(os.path.getsize(path) for path in wheels)
    console.print(f"Written: {directory}, {len(wheels)} wheels, {size / 1e6:.0f} MB", markup=False)
    console.print(f"SHA-256 of SHA256SUMS: {_sha256(directory / 'SHA256SUMS')}", markup=False)
    if constraints is None:
        console.print("Versions are the newest that polypfed allows: no --constraints was given", markup=False)
    if any(path.name.startswith("nvidia_") for path in wheels):
        console.print("torch is the CUDA build, about 5 GB; --index-url takes an index of CPU builds", markup=False)
    console.print(f"Next: copy it there, and run {directory.name}/install.sh", markup=False)
