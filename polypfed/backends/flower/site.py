"""A site of a deployment: a resident worker, Flower's SuperNode, and on a board the detector, beside each other."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from polypfed.backends.device import beside
from polypfed.backends.resident import Resident
from polypfed.backends.site_file import SiteFile
from polypfed.core.errors import ConfigError

log = logging.getLogger(__name__)
_AGAIN = 10.0  # seconds between two attempts to join
_STOP = 10.0
SUPERNODE = "polypfed.backends.flower.supernode"
"""What runs Flower's SuperNode."""

OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # Flower's second would be felt in every message
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "no_proxy": "127.0.0.1,localhost",
}
"""Environment of every process of a deployment: nothing is sent to, or fetched from, anybody outside it."""


@dataclass(frozen=True)
class Node:
    """How this site's SuperNode is started."""

    command: tuple[str, ...]
    environment: Mapping[str, str]


def node(site: SiteFile, worker: Path | None) -> Node:
    """The SuperNode of `site`, which finds its resident worker at the socket `worker`.

    Raises:
        ConfigError: a setting of [flower] is missing, a file is, or the private key is open to others.
    """
    server, port = site.engine.get("server"), site.engine.get("port", 9094)
    if not isinstance(server, str) or not isinstance(port, int):
        raise ConfigError('[flower] needs server = "HOST:PORT", and port a number', where=site.path)
    key, certificate = site.place("key"), site.place("certificate")
    if key.stat().st_mode & 0o077:
        raise ConfigError("the private key can be read by others", where=key, remedy=f"chmod 600 {key}")
    config = f"site={_quoted(site.path)}" + (f" worker={_quoted(worker)}" if worker else "")
    command = [sys.executable, "-P", "-m", SUPERNODE, "--superlink", server, "--root-certificates", str(certificate)]
    command += ["--auth-supernode-private-key", str(key), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--node-config", config]
    return Node(tuple(command), environment(site.path.parent))


def _quoted(path: Path) -> str:
    if set(str(path)) & set("\"'\\\n"):
        raise ConfigError("the path holds a quote or a backslash", where=path, remedy="Move the folder")
    return f'"{path}"'


def program(name: str) -> Path:
    """A command of Flower's, of the same installation as this one.

    Raises:
        ConfigError: it is not there.
    """
    found = Path(sys.executable).parent / name
    if not found.exists():
        raise ConfigError("Flower's command is not installed", where=found, remedy="pip install 'polypfed[flower]'")
    return found


def environment(home: Path) -> dict[str, str]:
    """For processes of Flower's: our switches, its folder below `home`, and its commands on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return os.environ | OFFLINE | {"FLWR_HOME": str(home / "flwr-home"), "PATH": path}


def run(path: str | Path, *, worker: bool = True, once: bool = False) -> int:
    """Join the federation and serve it until told to stop (SIGTERM, SIGINT); on a board, detect as well.

    Where `site.toml` has a [device], its detector runs in a process of its own; a site with no [flower] does only that.

    A SuperNode that ends is started again after ten seconds: after a power cut the SuperLink takes the same key only
    when the old connection's heartbeat has expired, about 70 s later.

    Args:
        path: of `site.toml`.
        worker: keep the client in a resident worker; False runs it in Flower's process for each message.
        once: do not start the SuperNode again.

    Returns:
        The exit code: 0 if told to stop, else the SuperNode's.

    Raises:
        ConfigError: see `node`.
    """
    site = SiteFile.load(path)
    stopped = threading.Event()
    with tempfile.TemporaryDirectory(prefix="pf-") as private, _signals(stopped), beside(site):
        if site.device and not site.engine:
            stopped.wait()
            return 0
        place = Path(private) / "worker"
        started = node(site, place if worker else None)
        if not worker:
            return _keep_up(site, started, stopped, once)
        with Resident(site, place):
            return _keep_up(site, started, stopped, once)


def _keep_up(site: SiteFile, started: Node, stopped: threading.Event, once: bool) -> int:
    while True:
        log.info("%s: joining %s", site.name, site.engine["server"])
        process = subprocess.Popen(started.command, env=started.environment, start_new_session=True)
        try:
            while process.poll() is None and not stopped.wait(0.2):
                continue
        finally:
            _end(process)
        if stopped.is_set():
            return 0
        log.error("%s: the SuperNode ended with code %d; its last lines say why", site.name, process.returncode)
        if once:
            return process.returncode or 1
        if stopped.wait(_AGAIN):
            return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the SuperNode and what it has started."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def _signals(stopped: threading.Event) -> Iterator[None]:
    """While this runs, SIGTERM and SIGINT set `stopped`."""

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
