"""The converter's own Python environment: litert-torch pins versions that the rest of the library cannot live with."""

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polypfed.core.errors import ConfigError, MissingExtraError, PolypfedError
from polypfed.core.files import write_atomic
from polypfed.detect.offline import SWITCHES

PINS = ("litert-torch==0.10.0", "litert-converter==0.5.0", "ai-edge-quantizer==0.10.0", "ai-edge-litert==2.3.0")
ONNX = ("onnx>=1.18,<2", "onnxscript>=0.5,<1")
OWN = ("torch>=2.6,<2.15", "torchvision>=0.21,<1", "ultralytics>=8.4.190,<8.5", "safetensors>=0.5,<1")
SYSTEMS = {("Linux", "x86_64"), ("Darwin", "arm64")}  # those litert-converter is published for
_TIME = 3600


class ExportError(PolypfedError):
    """A model could not be converted."""


def cache() -> Path:
    """Where templates and the converter live: `$POLYPFED_CACHE`, else `polypfed` in the user's cache folder."""
    if named := os.environ.get("POLYPFED_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polypfed"


@dataclass(frozen=True)
class Converter:
    """An environment with the converter in it.

    Args:
        folder: where it is; `$POLYPFED_CONVERTER`, else `converter` in the cache.
    """

    folder: Path = field(default_factory=lambda: Path(os.environ.get("POLYPFED_CONVERTER") or cache() / "converter"))

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def ready(self) -> bool:
        """Whether an installation of these pins was finished."""
        try:
            return list(json.loads((self.folder / "polypfed.json").read_text())["pins"]) == [*PINS, *ONNX]
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def install(self, wheels: Path | None = None, tell: Callable[[str], None] = lambda line: None) -> None:
        """Make the environment: about 1 GB, 7 GB where this one has no torch to share.

        Args:
            wheels: a folder of wheels; nothing is then asked of an index.
            tell: called with what is being done.

        Raises:
            ConfigError: this machine has no converter, or the environment cannot be made.
        """
        check_system()
        tell(f"making an environment at {self.folder}")
        self._run([sys.executable, "-m", "venv", "--clear", str(self.folder)], "make the environment")
        shared = all(importlib.util.find_spec(m) for m in ("torch", "torchvision", "ultralytics"))
        if shared:  # its own packages come first on the path, so that the converter's pins win
            (site,) = (self.folder / "lib").glob("python*/site-packages")
            folders = {str(Path(str(importlib.util.find_spec(m).origin)).parents[1]) for m in ("torch", "ultralytics")}  # type: ignore[union-attr]
            (site / "zz-polypfed-shared.pth").write_text("\n".join(sorted(folders)) + "\n")
        source = ["--no-index", "--find-links", str(wheels)] if wheels else []
        wanted = [*PINS, *ONNX, *(() if shared else OWN)]
        tell(f"installing {', '.join(wanted)}: {1 if shared else 7} GB, some minutes")
        self._run([str(self.python), "-m", "pip", "install", "--quiet", *source, *wanted], "install the converter")
        self._run([str(self.python), "-c", "import litert_torch, ai_edge_quantizer, onnx"], "load the converter")
        write_atomic(self.folder / "polypfed.json", json.dumps({"pins": [*PINS, *ONNX]}).encode())

    def run(self, request: Mapping[str, Any]) -> None:
        """Have a request of `worker` done.

        Raises:
            MissingExtraError: the converter is not installed. ExportError: the conversion failed.
        """
        if not self.ready:
            check_system()
            raise MissingExtraError(
                f"the converter is not installed at {self.folder}",
                remedy="Run the same command with --install-converter (about 1 GB, an environment of its own), "
                "or copy a template made on another machine",
            )
        with tempfile.TemporaryDirectory(prefix="polypfed-export-") as folder:
            path = Path(folder) / "request.json"
            path.write_text(json.dumps(dict(request)))
            done = self._start([str(self.python), "-m", "polypfed.detect.export.worker", str(path)], folder)
        if done.returncode:
            raise ExportError(_last(done.stderr) or f"the converter ended with {done.returncode}", where="converter")

    def _run(self, command: list[str], what: str) -> None:
        try:
            done = self._start(command)
        except OSError as error:
            raise ConfigError(f"cannot {what} ({error})", where=self.folder) from None
        if done.returncode:
            raise ConfigError(
                f"cannot {what} ({_last(done.stderr) or _last(done.stdout)})",
                where=self.folder,
                remedy="Look at the index pip uses, or give a folder of wheels with --wheels",
            )

    def _start(self, command: list[str], folder: str | None = None) -> subprocess.CompletedProcess[str]:
        root = str(Path(__file__).resolve().parents[3])  # where the package lies
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "VIRTUAL_ENV")}
        environment |= {**SWITCHES, "PYTHONPATH": root, "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
        if folder is not None:
            environment["YOLO_CONFIG_DIR"] = folder
        try:
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIME, check=False)
        except subprocess.TimeoutExpired:
            raise ExportError(f"took longer than {_TIME} seconds", where=command[0]) from None


def check_system() -> None:
    """Raise a ConfigError where no converter is published for this machine."""
    here = (platform.system(), platform.machine())
    if here not in SYSTEMS:
        raise ConfigError(
            f"there is no converter for {' '.join(here)}",
            where="export",
            remedy="Make the template once on x86-64 Linux and copy it here; filling in weights needs no converter",
        )


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line]
    return (errors or lines or [""])[-1][:400]
