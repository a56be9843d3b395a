"""`site.toml` and `server.toml`: what each end of a deployment says of itself, whatever engine carries the rounds.

A site's file names the function that makes its client; the server's names the one that makes its federation. Both
are the owner's own settings: nothing that comes over the wire can name code.
"""

import importlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polypfed.clients.base import Client
from polypfed.clients.device_settings import DeviceSettings
from polypfed.clients.guard import Charter
from polypfed.clients.on_device import on_device
from polypfed.clients.outbox import initial_of
from polypfed.clients.policy import Policy
from polypfed.core.errors import ConfigError
from polypfed.core.messages import Evaluation, Task, Update
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.settings import flat, site_names
from polypfed.federation import Federation
from polypfed.federation.plan import task_config
from polypfed.privacy.keyring import ROSTER
from polypfed.track import TrackSettings

KEYS = "keys"
"""Folder of an end's identity and roster, beside its settings."""


@dataclass(frozen=True)
class SiteFile:
    """One site.

    Attributes:
        path: the file itself; relative paths in it are relative to its folder.
        name: the site.
        client: "module:function", called as `function(name, base, **settings)`, returns a Client.
        state: folder of what the client keeps between rounds.
        settings: of the client.
        engine: the table named after the engine, such as [flower].
        device: the table [device]: the detector that serves beside training; empty if there is none.
        policy: what tasks may ask for; see `polypfed.clients.policy`.
    """

    path: Path
    name: str
    client: str
    state: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    device: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, engine: str = "flower") -> "SiteFile":
        """Read and check the file.

        Raises:
            ConfigError: it cannot be read, or a setting is missing, unknown or of the wrong type.
        """
        path = Path(path).absolute()
        tables = dict.fromkeys(("settings", "policy", "device", engine), dict)
        table = read(path, {"name": str, "client": str, "state": str, **tables}, ("name", "client"))
        site_names([table["name"]])
        state = path.parent / table.get("state", "state")
        policy = Policy.from_table(table.get("policy", {}), path)
        settings, more = table.get("settings", {}), table.get(engine, {})
        return cls(path, table["name"], table["client"], state, settings, more, policy, table.get("device", {}))

    @property
    def charter(self) -> Charter:
        """The owner's policy, and where the site's log, identity and plans lie, whatever run is at work."""
        return Charter(
            self.policy, audit=self.state / "audit.jsonl", keys=self.path.parent / KEYS,
            plans=self.state / "plans", budget=self.state / "budget.json",
        )  # fmt: skip

    def board(self) -> DeviceSettings | None:
        """What [device] says; None without one.

        Raises:
            ConfigError: a setting is missing, unknown or out of range.
        """
        return DeviceSettings.read(self.device, self.path.parent, self.state, self.path) if self.device else None

    def place(self, key: str) -> Path:
        """The path that the engine's table gives under `key`.

        Raises:
            ConfigError: it gives none, or the file does not exist.
        """
        value = self.engine.get(key)
        if not isinstance(value, str):
            raise ConfigError(f"{key} is missing", where=self.path)
        found = self.path.parent / value
        if not found.exists():
            raise ConfigError(f"{key}: {found} does not exist", where=self.path)
        return found

    def open(self) -> Client:
        """The client.

        Raises:
            ConfigError: it cannot be made from these settings.
        """
        client = call(self.client, self.path, self.name, self.path.parent, **self.settings)
        if not isinstance(client, Client) or client.name != self.name:
            raise ConfigError(f"{self.client} gave no client called {self.name!r}", where=self.path)
        board = self.board()
        return on_device(client, board) if board else client


def with_keys(fed: Federation, base: Path) -> Federation:
    """The federation, whose updates must be signed if the server's folder holds a roster."""
    keys = base / KEYS
    return replace(fed, keys=keys) if fed.keys is None and (keys / ROSTER).exists() else fed


def tracked(path: Path, table: Mapping[str, Any]) -> TrackSettings:
    """The table [track] of a server's file.

    Raises:
        ConfigError: naming the file and the setting.
    """
    try:
        return TrackSettings.from_table(table, path.parent)
    except ConfigError as error:
        raise ConfigError(error.problem, where=f"{path}: [track] {error.where}", remedy=error.remedy) from None


def about(fed: Federation, rounds: int) -> dict[str, Any]:
    """What trackers show of a federation's settings."""
    chosen = {name: getattr(fed, name) for name in ("seed", "quorum", "per_round", "evaluate")}
    return flat({**task_config(fed), "rounds": rounds, **chosen})


class Later:
    """A site's client that is made where and when it is first used, so that only that process loads what it needs."""

    def __init__(self, site: SiteFile) -> None:
        self.site, self.name, self.charter = site, site.name, site.charter
        self._client: Client | None = None

    @property
    def epochs(self) -> Any:
        """Of the client, if it has such a setting."""
        return getattr(self._open(), "epochs", None)

    def _open(self) -> Client:
        if self._client is None:
            self._client = self.site.open()
        return self._client

    def initial(self) -> tuple[ModelSpec, Vector]:
        """The layout and the model that the client starts from, (P,) float32.

        Raises:
            ConfigError: it knows none.
        """
        return initial_of(self._open())

    def fit(self, task: Task) -> Update:
        """See Client."""
        return self._open().fit(task)

    def evaluate(self, task: Task) -> Evaluation:
        """See Client."""
        return self._open().evaluate(task)

    def state(self) -> bytes:
        """See Client."""
        return self._open().state()

    def restore(self, state: bytes) -> None:
        """See Client."""
        self._open().restore(state)


def read(path: Path, known: Mapping[str, type], needed: tuple[str, ...]) -> dict[str, Any]:
    """The file's settings, each of its known type.

    Raises:
        ConfigError: naming the file and the setting.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot be read ({reason})", where=path) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"is not TOML: {error}", where=path) from None
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{key}: there is no such setting", where=path, remedy=f"It has: {', '.join(known)}")
        if type(value) is not known[key]:
            raise ConfigError(f"{key}: {value!r} is not of type {known[key].__name__}", where=path)
    if missing := [key for key in needed if key not in table]:
        raise ConfigError(f"{missing[0]} is missing", where=path)
    return table


def call(name: str, where: object, /, *args: Any, **settings: Any) -> Any:
    """Call "module:function".

    Raises:
        ConfigError: there is none, or it does not take these settings.
    """
    module, _, function = name.partition(":")
    try:
        made: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name!r} cannot be imported ({error})", where=where) from None
    try:
        return made(*args, **settings)
    except TypeError as error:
        raise ConfigError(f"{name} does not take the settings given ({error})", where=where) from error
