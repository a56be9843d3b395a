"""The administrator's end of a deployment: submit a run, watch it, fetch its result, shut everything down."""

import contextlib
import io
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from polypfed.core.errors import BackendError, ConfigError, QuorumError

log = logging.getLogger(__name__)
_POLL = 1.0
_AGAIN = 1.0


@dataclass(frozen=True)
class Outcome:
    """What became of a run: RUN/result.json, and the folder it was fetched into."""

    result: dict[str, Any]
    folder: Path


@contextmanager
def session(kit: str | Path, patience: float = 60.0) -> Iterator[Any]:
    """A connection to the server with the administrator's kit.

    Args:
        patience: seconds to wait for the server.

    Raises:
        ConfigError: the folder is no administrator's kit. BackendError: the server does not answer, or was lost.
    """
    from nvflare.fuel.flare_api.api_spec import InternalError, NoConnection, SessionClosed
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    kit, end = Path(kit).absolute(), monotonic() + patience
    try:
        name = json.loads((kit / "startup" / "fed_admin.json").read_text())["admin"]["username"]
    except (OSError, ValueError, KeyError):
        raise ConfigError("is no administrator's start-up kit", where=kit) from None
    while True:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                opened = new_secure_session(name, str(kit), timeout=5.0)
            break
        except (NoConnection, OSError, RuntimeError) as error:
            if monotonic() > end:
                raise BackendError(f"the server does not answer ({error})", where=kit, remedy="Start it") from None
            time.sleep(_AGAIN)
    try:
        yield opened
    except (InternalError, NoConnection, SessionClosed) as error:
        remedy = "Start it again, and run again: the run goes on after its last saved round"
        raise BackendError(f"the server was lost ({error})", where=kit, remedy=remedy) from None
    finally:
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            opened.close()


def conduct(
    kit: str | Path,
    run: str = "study",
    *,
    rounds: int = 0,
    into: str | Path | None = None,
    patience: float = 60.0,
    tell: Callable[[str], None] = log.info,
    more: Callable[[], Iterable[str]] = tuple,
) -> Outcome:
    """Submit the run as a job, watch it to its end and fetch its result. A run begun earlier is resumed.

    Args:
        rounds: server rounds; 0 leaves them to the server's settings.
        into: where the result is put; None is `results` in the kit.
        patience: seconds to wait for the server and for all of its sites.
        tell: gets a line for each state of the job. more: asked every second for further lines.

    Raises:
        QuorumError, ConfigError: see `Federation.run`. BackendError: the job ended without a result of ours.
    """
    with session(kit, patience) as opened:
        job = submit(opened, Path(kit), run, rounds)
        tell(f"job {job}: submitted")
        meta = watch(opened, job, tell, more)
        folder = fetch(opened, job, Path(into) if into is not None else Path(kit).absolute() / "results")
    place = folder / "workspace" / "polypfed"
    if not (place / "result.json").exists():
        raise BackendError(f"the job ended as {meta.get('status')} without a result", where=folder)
    return Outcome(judged(json.loads((place / "result.json").read_text())), place)


def judged(result: dict[str, Any]) -> dict[str, Any]:
    """The result, if the run is complete.

    Raises:
        QuorumError, ConfigError, BackendError: it is not.
    """
    if result["status"] == "completed":
        return result
    kinds = {"QuorumError": QuorumError, "ConfigError": ConfigError}
    raise kinds.get(str(result.get("error")), BackendError)(str(result.get("detail", "the run failed")))


def submit(opened: Any, kit: Path, run: str, rounds: int = 0) -> str:
    """Submit the run as a job; its id."""
    from polypfed.backends.nvflare.recipe import PolypRecipe

    jobs = kit.absolute() / "jobs"
    with contextlib.redirect_stdout(io.StringIO()):
        PolypRecipe(run, rounds=rounds, min_clients=1).export(str(jobs))
        return str(opened.submit_job(str(jobs / run)))


def watch(
    opened: Any, job: str, tell: Callable[[str], None] = log.info, more: Callable[[], Iterable[str]] = tuple
) -> dict[str, Any]:
    """Wait until the job has ended; NVFlare's own account of it."""
    last = ""
    while True:
        meta: dict[str, Any] = opened.get_job_meta(job)
        status = str(meta.get("status", ""))
        if status != last:
            tell(f"job {job}: {status}")
            last = status
        for line in more():
            tell(line)
        if status.startswith("FINISHED"):
            return meta
        time.sleep(_POLL)


def fetch(opened: Any, job: str, into: Path) -> Path:
    """Download the job's result; its folder."""
    into.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):
        return Path(opened.download_job_result(job, str(into)))


def status(opened: Any) -> dict[str, Any]:
    """Sites that are connected, and jobs that are not finished."""
    with contextlib.redirect_stdout(io.StringIO()):
        info = opened.get_system_info()
        jobs = opened.list_jobs()
    running = [j["job_id"] for j in jobs if not str(j.get("status", "")).startswith("FINISHED")]
    return {"sites": sorted(c.name for c in info.client_info), "jobs": running}


def stop(kit: str | Path, patience: float = 10.0) -> None:
    """Shut down all sites, then the server.

    Raises:
        BackendError: the server does not answer, or refuses.
    """
    with session(kit, patience) as opened, contextlib.redirect_stdout(io.StringIO()):
        reply = opened.api.server_execute("shutdown all")
    said = json.dumps(reply, default=str)
    if "Not authorized" in said or "NOT_AUTHORIZED" in said:
        raise BackendError(f"the server refuses ({said[:200]})", where=kit)
