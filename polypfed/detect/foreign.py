"""Weights of another's making, from a PyTorch file to safetensors, without running what the file says.

A .pt file is a pickle. It is read in a process of its own, by PyTorch's reader for weights alone, which knows tensors
and containers and nothing else; that process may start no program, open no connection and use no unpickler, and its
memory, time and input are bounded. What comes out is a safetensors file, and only that is read here. A file that holds
a model as an object, as most training scripts leave it, is refused: only its own code can open it.

`python -m polypfed.detect.foreign SOURCE TARGET` is that process.
"""

import json
import resource
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy

from polypfed.core.errors import DataError
from polypfed.core.extras import require
from polypfed.core.files import write_atomic
from polypfed.detect.warm import LIMIT, weights_of

MEMORY, SECONDS = 16 << 30, 120.0  # bytes of address space, of which PyTorch alone reserves several
_NESTED = ("state_dict", "model_state_dict", "model", "ema")
_REMEDY = "Where you trust the file, keep its weights alone: torch.save(model.state_dict(), 'weights.pt')"
_DENIED = (
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.remove", "os.rename",
    "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "shutil.", "subprocess.", "socket.", "pty.", "ftplib.",
    "urllib.", "http.", "smtplib.", "webbrowser.", "pickle.find_class", "marshal.", "code.__new__", "compile", "exec",
)  # fmt: skip


@dataclass(frozen=True)
class Imported:
    """What came out: arrays, values, and the names of what was no array."""

    arrays: int
    values: int
    skipped: tuple[str, ...]


def import_weights(source: str | Path, target: str | Path, limit: int = LIMIT) -> Imported:
    """Write the weights of a .pt file as safetensors.

    Args:
        source: a zip as `torch.save` writes it, with a state dict in it, alone or under "state_dict", "model" or "ema".
        target: not there yet.
        limit: most bytes the file may unpack to.

    Raises:
        DataError: no such file, another format, too large, a model as an object, nothing finite in it, or `target`
            exists. MissingExtraError: torch is not installed (extra `yolo`).
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise DataError("is there already", where=target, remedy="Name another file")
    _bounded(source, limit)
    require("torch", extra="yolo")
    with tempfile.TemporaryDirectory(prefix="polypfed-import-") as folder:
        made = Path(folder) / "weights.safetensors"
        command = [sys.executable, "-m", __name__, str(source.resolve()), str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise DataError(f"reading it took more than {SECONDS:g} s", where=source) from None
        said = (done.stdout.strip().splitlines() or [""])[-1]
        if done.returncode or not said.startswith("{"):
            last = (done.stderr.strip().splitlines() or ["no word"])[-1][:300]
            raise DataError(f"reading it ended with code {done.returncode} ({last})", where=source, remedy=_REMEDY)
        about: dict[str, Any] = json.loads(said)
        if "refused" in about:
            raise DataError(about["refused"], where=source, remedy=_REMEDY)
        arrays = weights_of(made, limit=limit)
        write_atomic(target, made.read_bytes())
    return Imported(len(arrays), sum(a.size for a in arrays.values()), tuple(about["skipped"]))


def _bounded(source: Path, limit: int) -> None:
    if not source.is_file():
        raise DataError("no such file", where=source)
    try:
        with zipfile.ZipFile(source) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"is no zip as PyTorch 1.6 and later write it ({error})", where=source, remedy=_REMEDY
        ) from None
    if size > limit:
        raise DataError(f"unpacks to {size} bytes, more than {limit}", where=source)


def _main(source: str, target: str) -> int:
    torch: Any = require("torch", extra="yolo")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS)))
    _read(torch, _nothing(torch, Path(target)))  # what torch imports late, it imports before the door is shut
    sys.addaudithook(_deny)
    try:
        tensors, skipped = _tensors(torch, _read(torch, Path(source)))
        arrays = {name: _array(torch, tensor) for name, tensor in tensors.items()}
    except Exception as error:  # noqa: BLE001 - whatever torch raises, it is the file's
        return _say({"refused": f"holds more than weights ({' '.join(str(error).split())[:160]})"})
    Path(target).write_bytes(safetensors.numpy.save(arrays))
    return _say({"skipped": skipped})


def _read(torch: Any, path: Path) -> Any:
    """The one place in the project that does this; see the head of the file. By handle: torch goes by the suffix."""
    with open(path, "rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _nothing(torch: Any, place: Path) -> Path:
    torch.save({"w": torch.zeros(1)}, place)  # read back at once, in this process
    return place


def _say(about: dict[str, Any]) -> int:
    sys.stdout.write(json.dumps(about) + "\n")
    return 0


def _deny(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(_DENIED) or (event == "open" and _writes(arguments)):
        raise PermissionError(f"{event} is not allowed here")


def _writes(arguments: tuple[Any, ...]) -> bool:
    path, mode = arguments[0], arguments[1] or ""
    return isinstance(mode, str) and bool(set(mode) & set("wax+")) and str(path) != sys.argv[2]


def _tensors(torch: Any, found: Any) -> tuple[dict[str, Any], list[str]]:
    for name in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict):
        raise TypeError(f"a {type(found).__name__}, no state dict")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise TypeError("a dict without a tensor")
    return tensors, sorted(str(name) for name in found if str(name) not in tensors)


def _array(torch: Any, tensor: Any) -> Any:
    plain = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    plain = plain.dequantize() if plain.is_quantized else plain
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).contiguous().numpy().copy()


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], sys.argv[2]))
