"""A site's client on a board: each global model that reaches it goes to the detector beside it, and training yields.

The two are processes of their own and meet in a folder of models (`polypfed.clients.device.Inbox`), so detection goes
on when training crashes, and training when the camera is unplugged.
"""

import hashlib
import os
import sys
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from polypfed.clients.base import Client, HasInitial
from polypfed.clients.device_settings import DeviceSettings
from polypfed.core.errors import ConfigError
from polypfed.core.files import write_atomic
from polypfed.core.messages import Evaluation, Task, Update
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.rundir import save_model
from polypfed.strategies.base import Strategy

_KEEP = 3  # models; the newest serves, those before it are there to look back


class OnDevice:
    """A client whose global models also serve.

    Args:
        client: what trains; it must be able to say its layout.
        settings: of the board.

    Raises:
        ConfigError: the client has no `initial`, so that nobody knows which array is which.
    """

    def __init__(self, client: Client, settings: DeviceSettings) -> None:
        if not isinstance(client, HasInitial):
            raise ConfigError("a client beside a [device] needs initial()", where=client.name)
        self.client, self.settings, self.name = client, settings, client.name
        self._spec: ModelSpec | None = None

    @property
    def epochs(self) -> Any:
        """Of the client, if it has such a setting."""
        return getattr(self.client, "epochs", None)

    def initial(self) -> tuple[ModelSpec, Vector]:
        """See HasInitial."""
        spec, x = self.client.initial()
        return spec, x

    def check(self, strategy: Strategy) -> None:
        """Raise a ConfigError if this site cannot train under `strategy`."""
        if check := getattr(self.client, "check", None):
            check(strategy)

    def fit(self, task: Task) -> Update:
        """Hand over the model, give way to the detector, train."""
        self._serve(task.vectors["model"], task.round - 1)
        _give_way(self.settings.nice)
        return self.client.fit(task)

    def evaluate(self, task: Task) -> Evaluation:
        """Hand over the model, and measure it. A model beside the global one (config "of") is only measured."""
        if "of" not in task.config:
            self._serve(task.vectors["model"], task.round)
        _give_way(self.settings.nice)
        return self.client.evaluate(task)

    def state(self) -> bytes:
        """See Client."""
        return self.client.state()

    def restore(self, state: bytes) -> None:
        """See Client."""
        self.client.restore(state)

    def _serve(self, model: Vector, number: int) -> None:
        """Put the model into the device's folder, unless it is the one that was put there last."""
        folder = self.settings.models
        digest, mark = digest_of(model), folder / "newest"
        with suppress(OSError):
            if mark.read_text() == digest:
                return
        if self._spec is None:
            self._spec = self.initial()[0]
        save_model(folder / f"{version(number, digest)}.safetensors", self._spec, model)
        write_atomic(mark, digest.encode())
        for old in sorted(folder.glob("*.safetensors"), key=lambda p: p.stat().st_mtime_ns)[:-_KEEP]:
            old.unlink(missing_ok=True)


def digest_of(model: Vector) -> str:
    """SHA-256 of a model's values, hex."""
    return hashlib.sha256(model.tobytes()).hexdigest()


def version(number: int, digest: str) -> str:
    """What a model is called on the device and in its store: the round it came from, and its content."""
    return f"round-{number:04d}-{digest[:8]}"


def on_device(client: Client, settings: DeviceSettings) -> OnDevice:
    """The client as a board runs it. A DetectorClient becomes an EdgeClient that trains on the board's own store.

    Raises:
        ConfigError: see OnDevice and EdgeClient.
    """
    detectors = sys.modules.get("polypfed.clients.detector_client")  # not there: it is none, and torch may be missing
    if detectors is not None and isinstance(client, detectors.DetectorClient):
        more: dict[str, Any] = {}
        if settings.store is not None:
            more = {"store": settings.store, "key": settings.key, "pseudo": settings.pseudo}
        client = _as_edge(client, settings, more)
    return OnDevice(client, settings)


def _as_edge(client: Any, settings: DeviceSettings, more: dict[str, Any]) -> Any:
    from polypfed.clients.edge_client import EdgeClient

    if isinstance(client, EdgeClient):
        return replace(client, **more)
    given = {f.name: getattr(client, f.name) for f in fields(client) if not f.name.startswith("_")}
    return EdgeClient(**given, template=settings.template, **more)


def _give_way(nice: int) -> None:
    """Lower this thread's priority to `nice`, once; threads that it starts inherit it.

    Linux with autogroups shares the processor between sessions first, and `nice` counts within one only. The detector
    has a session of its own; so this one gives way too, unless it is a terminal's and somebody else's as well.
    """
    with suppress(OSError):
        os.nice(max(0, nice - os.nice(0)))
    if nice and not _has_terminal():
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(nice))


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
