"""The detector of a board as a process beside training: started, watched, and started again, whatever engine trains.

Detection and training share no process, so neither ends the other: the detector needs no torch, and a trainer that
runs out of memory takes no frame with it. `python -m polypfed.backends.device SITE.TOML` is that process.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from polypfed.backends.site_file import SiteFile
from polypfed.clients.device_settings import DeviceSettings
from polypfed.core.errors import ConfigError, PolypfedError

log = logging.getLogger(__name__)
_FIRST, _LONGEST = 1.0, 60.0  # seconds between two starts, doubled while it does not stay up
_STOP = 10.0
_SILENT = 120.0  # seconds without a sign of life; a delegate may compile for half a minute


@contextmanager
def beside(*sites: SiteFile) -> Iterator[list["DeviceProcess"]]:
    """While this runs, the detectors of those `sites` that have a [device] do too.

    Raises:
        ConfigError: a [device] cannot be used.
    """
    boards = [(site, board) for site in sites if (board := site.board())]
    with ExitStack() as stack:
        yield [stack.enter_context(DeviceProcess(site, board)) for site, board in boards]


def settings_of(path: Path) -> DeviceSettings:
    """The [device] of a site.toml, whatever engine it is written for.

    Raises:
        ConfigError: it has none, or one that cannot be used.
    """
    for engine in ("flower", "nvflare"):
        with suppress(ConfigError):
            board = SiteFile.load(path, engine).board()
            break
    else:
        board = SiteFile.load(path).board()
    if board is None:
        raise ConfigError("[device] is missing", where=path)
    return board


class DeviceProcess:
    """One site's detector. Use it as a context manager.

    Args:
        site: with a [device]. settings: what it says.
    """

    def __init__(self, site: SiteFile, settings: DeviceSettings) -> None:
        self.site, self.settings = site, settings
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, daemon=True, name=f"device {site.name}")

    def __enter__(self) -> "DeviceProcess":
        self.settings.status.unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def status(self) -> dict[str, Any]:
        """What the service last said: see `polypfed.clients.device_service.State`; empty before its first frame."""
        try:
            found: dict[str, Any] = json.loads(self.settings.status.read_text())
        except (OSError, ValueError):
            return {}
        return found

    def _keep_up(self) -> None:
        pause = _FIRST
        while not self._stopped.is_set():
            begun = time.monotonic()
            code = self._run()
            if code == 0 or self._stopped.is_set():
                return  # its source has ended, or it was told to
            log.error("%s: the detector ended with code %d; its last lines say why", self.site.name, code)
            pause = _FIRST if time.monotonic() - begun > _LONGEST else min(2 * pause, _LONGEST)
            self._stopped.wait(pause)

    def _run(self) -> int:
        command = [sys.executable, "-m", "polypfed.backends.device", str(self.site.path)]
        self.starts += 1
        # The pipe is closed when this process ends, however it does, and the detector ends with it.
        self._process = process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        begun = time.time()
        try:
            while process.poll() is None and not self._stopped.wait(0.2):
                if time.time() - max(begun, self._seen()) > _SILENT:
                    log.error("%s: the detector has been silent for %d s", self.site.name, _SILENT)
                    process.kill()
        finally:
            _end(process)
        return process.returncode

    def _seen(self) -> float:
        try:
            return self.settings.status.stat().st_mtime
        except OSError:
            return 0.0


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP)
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def main(path: Path) -> int:
    """Serve until the standard input ends or SIGTERM comes; the exit code is 1 if the service cannot run."""
    from polypfed.clients.device_service import run

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    threading.Thread(target=_stop_at_end, args=(stop,), daemon=True).start()
    try:
        run(settings_of(path), stop)
    except PolypfedError as error:
        log.error("%s", error)
        return 1
    return 0


def _stop_at_end(stop: threading.Event) -> None:
    while os.read(0, 4096):  # not through sys.stdin, whose lock an exit would wait for
        continue
    stop.set()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
