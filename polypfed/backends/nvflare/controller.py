"""The server's end of a job: the round engine itself, over NVFlare's tasks.

A run lies in a folder outside the job. A job whose run that folder holds already resumes it, so submitting the same
job again begins it and, after whatever happened, continues it.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal

from polypfed.backends.nvflare.exchange import ExchangeController, names_of
from polypfed.backends.nvflare.payload import Layout
from polypfed.backends.site_file import about, call, read, tracked, with_keys
from polypfed.core.errors import ConfigError, PolypfedError
from polypfed.core.files import write_atomic
from polypfed.core.history import History
from polypfed.core.messages import Reply, Task, Update
from polypfed.core.settings import site_names
from polypfed.federation import Event, Federation, recorded
from polypfed.track import TrackSettings

log = logging.getLogger(__name__)
SERVER_FILE = "polypfed.toml"
"""The server's own settings, in the folder `local/` of its kit."""

_TYPES = {"federation": str, "directory": str, "sites": list, "patience": int, "settings": dict, "track": dict}
_RESULTS = ("result.json", "model.safetensors", "history.jsonl", "failures.jsonl", "run.json")


@dataclass(frozen=True)
class ServerFile:
    """The server's `polypfed.toml`.

    Attributes:
        federation: "module:function", called as `function(sites, base, **settings)`; returns a Federation with an
            initial model and the number of rounds.
        directory: folder of the runs, one below it per run.
        sites: who takes part; empty takes those that the job starts with.
        patience: seconds without a sign of a site after which its round is lost.
        track: where the runs' figures go as well.
    """

    path: Path
    federation: str
    directory: Path
    sites: Sequence[str] = ()
    patience: float = 30.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    track: TrackSettings = field(default_factory=TrackSettings)

    @classmethod
    def load(cls, path: Path) -> "ServerFile":
        """Read and check the file.

        Raises:
            ConfigError: it cannot be read, or a setting is missing, unknown or of the wrong type.
        """
        table = read(path, _TYPES, ("federation",))
        site_names(table.get("sites", []))
        places = {"directory": path.parent / table.get("directory", "../runs")}
        return cls(path, **table | places | {"track": tracked(path, table.get("track", {}))})


class PolypController(ExchangeController):
    """Runs a federation.

    What it runs is in the server's own `local/polypfed.toml`. A job may name a federation of its own only if it ships
    code, which NVFlare has then authorised (BYOC).

    Args:
        run: name of the run, and of its folder.
        rounds: server rounds, instead of what the federation's function says; 0 leaves that.
        federation: "module:function" of the job's own code; "" for the server's file.
        settings: of that function.
    """

    _always_serialize_args = ("run", "rounds", "federation", "settings")

    def __init__(
        self, run: str = "study", rounds: int = 0, federation: str = "", settings: dict[str, Any] | None = None
    ) -> None:
        site_names([run])
        super().__init__()
        self.run, self.rounds, self.federation, self.settings = run, rounds, federation, settings or {}

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run or resume; the outcome is RUN/result.json, and a copy in the job's result. Do not trust a job's status:
        NVFlare calls a job whose last site was lost abnormal though every round is done.
        """
        logging.getLogger("polypfed").setLevel(logging.INFO)
        workspace = fl_ctx.get_engine().get_workspace()
        folder = Path(workspace.get_run_dir(fl_ctx.get_job_id()))  # until the settings say where the run is
        try:
            file = self._file(workspace, fl_ctx)
            folder = file.directory / self.run
            history = self._conduct(file, folder, abort_signal, fl_ctx)
        except Exception as error:
            if not isinstance(error, PolypfedError):  # a mistake of ours or of the federation's own code
                log.exception("the run failed")
            _note(folder, {"status": "failed", "error": type(error).__name__, "detail": str(error)})
            self.system_panic(str(error), fl_ctx)
        else:
            _note(folder, _outcome(history))
        finally:
            _copy(folder, Path(workspace.get_result_root(fl_ctx.get_job_id())) / "polypfed")

    def _file(self, workspace: Any, fl_ctx: FLContext) -> ServerFile:
        path = Path(workspace.get_site_config_dir()).absolute() / SERVER_FILE
        if not self.federation:
            return ServerFile.load(path)
        if not Path(workspace.get_app_custom_dir(fl_ctx.get_job_id())).is_dir():
            remedy = "Leave `federation` out"
            raise ConfigError("the job names a federation but ships no code", where=path, remedy=remedy)
        root = Path(workspace.get_root_dir()).absolute()
        return ServerFile(path, self.federation, root / "runs", settings=self.settings)

    def _conduct(self, file: ServerFile, folder: Path, abort: Signal, fl_ctx: FLContext) -> History:
        sites = sorted(file.sites) or names_of(fl_ctx)
        fed, rounds = call(file.federation, file.path, sites, file.path.parent, **file.settings)
        if not isinstance(fed, Federation):
            raise ConfigError(f"{file.federation} gave no Federation", where=file.path)
        fed = with_keys(fed, file.path.parent)
        self._patience = file.patience
        backend, rounds = _Sites(self, fed, sites, abort, fl_ctx), self.rounds or rounds
        tracking = file.track.open(self.run, about(fed, rounds))
        begun = (folder / "run.json").exists()
        log.info("%s the run in %s with %s", "resuming" if begun else "beginning", folder, ", ".join(sites))
        return recorded(fed, rounds, backend, folder, _tell, tracking)


class _Sites:
    """The backend that the engine sees."""

    def __init__(
        self, controller: PolypController, fed: Federation, sites: Sequence[str], abort: Signal, fl_ctx: FLContext
    ) -> None:
        self.clients = sites
        self._controller, self._abort, self._fl_ctx = controller, abort, fl_ctx
        spec = fed.strategy.wire(fed.initial[0]) if fed.initial else None
        self._layout: Layout = [(p.name, p.stop - p.start) for p in spec.parts] if spec else []

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        return self._controller.exchange(tasks, deadline, self._layout, self._fl_ctx, self._abort)


def _tell(event: Event) -> None:
    if event.kind in ("round", "saved", "abandoned"):
        log.info("round %d: %s", event.round, {"round": "begins", "saved": "saved"}.get(event.kind, "too few updates"))
    elif event.kind == "fit" and isinstance(event.reply, Update):
        log.info("round %d: %s has trained", event.round, event.site)
    elif (reason := getattr(event.reply, "reason", "")) != "":
        log.warning("round %d: %s: %s", event.round, event.site, reason)


def _outcome(history: History) -> dict[str, Any]:
    digest = "" if history.model is None else hashlib.sha256(history.model.tobytes()).hexdigest()
    log.info("the run is complete: model %s", digest or "at the sites")  # under encryption only they have it
    return {"status": "completed", "rounds": history.rows[-1]["round"] if history.rows else 0, "sha256": digest}


def _note(folder: Path, outcome: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "result.json", json.dumps(outcome, indent=1).encode() + b"\n")


def _copy(folder: Path, target: Path) -> None:
    """What an administrator downloads with the job."""
    target.mkdir(parents=True, exist_ok=True)
    for name in _RESULTS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
