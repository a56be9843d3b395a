"""The server's ServerApp: its main is our round engine over Flower's Grid.

`POLYPFED_SERVER`, or `server` in the run config, is the path of `server.toml`. A run that its folder holds already is
resumed, so the same `flwr run` begins it and, after whatever happened, continues it.
"""

import hashlib
import json
import logging
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from polypfed.backends.flower.pairs import InPairs
from polypfed.backends.flower.roll import Roll, read_keys
from polypfed.backends.site_file import about, call, read, tracked, with_keys
from polypfed.core.errors import BackendError, ConfigError, PolypfedError
from polypfed.core.files import write_atomic
from polypfed.core.history import History
from polypfed.core.messages import Update
from polypfed.core.rundir import RunDirectory
from polypfed.federation import Event, Federation, recorded
from polypfed.track import TrackSettings

log = logging.getLogger("polypfed.flower.server")
app = ServerApp()
AT_SITES = "model.safetensors below each site's state; this server has seen none"
_TYPES = {
    "federation": str,
    "directory": str,
    "sites": str,
    "wait": int,
    "patience": int,
    "settings": dict,
    "track": dict,
}


@dataclass(frozen=True)
class ServerFile:
    """The server's `server.toml`.

    Attributes:
        federation: "module:function", called as `function(sites, base, **settings)`; returns a Federation with an
            initial model and the number of rounds.
        directory: folder of the run.
        sites: folder of the sites' public keys, one NAME.pub each.
        wait: seconds to wait for all sites when the run starts.
        patience: seconds to wait, in each exchange, for as many sites as the quorum asks.
        track: where the run's figures go as well.
    """

    path: Path
    federation: str
    directory: Path
    sites: Path
    wait: float = 120.0
    patience: float = 120.0
    settings: dict[str, Any] = field(default_factory=dict)
    track: TrackSettings = field(default_factory=TrackSettings)

    @classmethod
    def load(cls, path: str | Path) -> "ServerFile":
        """Read and check the file.

        Raises:
            ConfigError: it cannot be read, or a setting is missing, unknown or of the wrong type.
        """
        path = Path(path).absolute()
        table = read(path, _TYPES, ("federation",))
        places = {k: path.parent / table.pop(k, default) for k, default in (("directory", "run"), ("sites", "sites"))}
        track = tracked(path, table.pop("track", {}))
        return cls(path, **places, track=track, **table)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or resume; the outcome is written to RUN/result.json.

    Raises:
        PolypfedError: the run did not end well; Flower then calls it failed.
    """
    _speak()
    _end_with_parent()
    place = os.environ.get("POLYPFED_SERVER") or str(context.run_config.get("server", ""))
    if not place:
        raise ConfigError("server is missing", where="run config", remedy="Name the path of server.toml")
    file = ServerFile.load(place)
    try:
        history = conduct(grid, file)
    except PolypfedError as error:
        _result(file, {"status": "failed", "error": type(error).__name__, "detail": str(error)})
        raise
    digest = None if history.model is None else hashlib.sha256(history.model.tobytes()).hexdigest()
    _result(file, {"status": "completed", "rounds": history.rows[-1]["round"] if history.rows else 0, "sha256": digest})
    log.info("the run is complete: model %s", digest or AT_SITES)


def conduct(grid: Grid, file: ServerFile) -> History:
    """All rounds of the federation that `file` describes.

    Raises:
        PolypfedError: see `Federation.run`. BackendError: the SuperLink was lost.
    """
    keys = read_keys(file.sites)
    fed, rounds = call(file.federation, file.path, sorted(keys), file.path.parent, **file.settings)
    if not isinstance(fed, Federation):
        raise ConfigError(f"{file.federation} gave no Federation", where=file.path)
    fed = with_keys(fed, file.path.parent)
    roll = Roll(grid.get_nodes, keys, fed.quorum)
    online = roll.wait(len(keys), file.wait)
    log.info("%d of %d sites are online: %s", len(online), len(keys), ", ".join(sorted(online)))
    backend = InPairs(grid, list(keys), lambda: roll.within(min(file.patience, fed.deadline)), apart=True)
    tracking = file.track.open(file.directory.name, about(fed, rounds))
    until_free(file.directory)
    begun = (file.directory / "run.json").exists()
    log.info("%s the run in %s", "resuming" if begun else "beginning", file.directory)
    try:
        return recorded(fed, rounds, backend, file.directory, _tell, tracking)
    except httpx.HTTPError as error:
        remedy = "Start the SuperLink again, and run again: the run goes on after its last saved round"
        raise BackendError(f"the SuperLink was lost ({error})", where=file.directory, remedy=remedy) from error


def _speak() -> None:
    """What we log reaches `flwr run --stream` and `flwr log`."""
    ours, handler = logging.getLogger("polypfed"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("polypfed: %(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    logging.getLogger("flwr").addFilter(_plainly)


def _plainly(record: logging.LogRecord) -> bool:
    """Of an error of ours the log has the sentence, which names what is wrong and the way out, and no traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, PolypfedError):
        record.msg, record.args, record.exc_info = "%s", (str(error),), None
    return True


def _tell(event: Event) -> None:
    if event.kind in ("round", "saved", "abandoned"):
        log.info("round %d: %s", event.round, {"round": "begins", "saved": "saved"}.get(event.kind, "too few updates"))
    elif event.kind == "fit" and isinstance(event.reply, Update):
        log.info("round %d: %s has trained", event.round, event.site)


def until_free(directory: Path, seconds: float = 60.0) -> None:
    """Wait until a run that lost its SuperLink has let go of the folder.

    Raises:
        ConfigError: another process is still working in it.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            with RunDirectory(directory):
                return
        except ConfigError:
            if time.monotonic() > end:
                raise
            time.sleep(1.0)


def _result(file: ServerFile, outcome: dict[str, Any]) -> None:
    """For whoever started the run: Flower's own command ends well whatever became of it."""
    write_atomic(file.directory / "result.json", json.dumps(outcome, indent=1).encode() + b"\n")


def _end_with_parent() -> None:
    """A ServerApp whose SuperLink is gone would wait for ever, and hold the run's folder."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
