"""Where the run lies that is to be watched: its folder, or that of a deployment, or of a deployment's server."""

import tomllib
from pathlib import Path
from typing import Any

from polypfed.core.errors import DataError
from polypfed.core.journal import FILE as JOURNAL

_NVFLARE = "local/polypfed.toml"  # in a start-up kit
_FIRST = "study"  # what `polypfed nvflare run` calls a run that is given no name


def place_of(folder: str | Path) -> Path:
    """The run's folder.

    Args:
        folder: the run's own; or a Flower server's, with server.toml; or the start-up kit of an NVFlare server, of
            whose runs the one that last did something is meant; or the whole deployment, with either in it.

    Raises:
        DataError: there is no such folder, or the server's file cannot be read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError("no such folder", where=path, remedy="Give the folder of a run, or of a deployment")
    for server in (path, path / "server", *sorted(path.glob("kits/*"))):
        if (server / "server.toml").is_file():
            return server / str(_read(server / "server.toml").get("directory", "run"))
        if (server / _NVFLARE).is_file() and "federation" in (settings := _read(server / _NVFLARE)):
            return _newest((server / "local" / str(settings.get("directory", "../runs"))).resolve())
    return path


def _newest(runs: Path) -> Path:
    """Of the runs below a folder, the one that last did something; the usual one, if there is none yet."""
    last = {path.parent: path.stat().st_mtime for name in ("run.json", JOURNAL) for path in runs.glob(f"*/{name}")}
    return max(last, key=lambda run: last[run], default=runs / _FIRST)


def _read(settings: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(settings.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", where=settings) from None
