"""What a board's detector needs to know: the table [device] of `site.toml`, or the options of `polypfed device`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from polypfed.core.errors import ConfigError
from polypfed.core.settings import whole


@dataclass(frozen=True)
class DeviceSettings:
    """One board.

    Args:
        frames: folder, video, camera ("0", "/dev/video0") or stream ("rtsp://...").
        template: of the models to come, made by `polypfed export ARCH`.
        models: folder into which new global models are put; the device looks there.
        store: sample store for hard frames; None keeps none. key: its key file.
        store_gb: what the store may grow to.
        keep_samples_days: frames seen longer ago are forgotten, images and scores, whatever their label; 0 keeps them
            until the store is full.
        threshold: frames whose best confidence is below it are hard.
        every: of hard frames in a row keep each so-manieth.
        threads: of the interpreter; 0 for all cores but one, which is left to training.
        delegate: library with options, "LIB,key:value"; "" for none.
        conf: least confidence shown. live: port of the live view; 0 shows none.
        repeat: begin again when a folder or video ends.
        nice: priority of training beside it, 0 (the detector's own) to 19 (what the detector leaves).
        pseudo: frames without a person's label are trained on too, with the boxes the serving model is at least so sure
            of; 0, as it is by default, never does that. The record counts them.

    Raises:
        ConfigError: a setting is out of range, or a store has no key.
    """

    frames: str
    template: Path
    models: Path
    store: Path | None = None
    key: Path | None = None
    store_gb: float = 4.0
    threshold: float = 0.7
    every: int = 10
    threads: int = 0
    delegate: str = ""
    conf: float = 0.25
    live: int = 0
    repeat: bool = False
    nice: int = 10
    pseudo: float = 0.0
    keep_samples_days: int = 0

    def __post_init__(self) -> None:
        for name, high in (("threads", 1024), ("live", 65535), ("nice", 19)):
            whole(f"device.{name}", getattr(self, name), 0, high)
        whole("device.every", self.every, 1)
        whole("device.keep_samples_days", self.keep_samples_days, 0)
        for name, low in (("threshold", 0), ("conf", 0), ("pseudo", -1)):
            if not low < getattr(self, name) <= 1:
                raise ConfigError(f"{getattr(self, name)!r} is not above 0 and at most 1", where=f"device.{name}")
        if self.pseudo < 0 or not self.store_gb > 0:
            raise ConfigError("must not be negative", where="device.pseudo, device.store_gb")
        if self.store is not None and self.key is None:
            raise ConfigError("a store needs a key", where="device.key", remedy="Name a file, best on another medium")
        for name in ("pseudo", "keep_samples_days"):
            if getattr(self, name) and self.store is None:
                raise ConfigError("needs a store", where=f"device.{name}")

    @property
    def status(self) -> Path:
        """The file in which the running service says how it fares."""
        return self.models.parent / "status.json"

    @classmethod
    def read(cls, table: Mapping[str, Any], base: Path, state: Path, where: object) -> "DeviceSettings":
        """From a TOML table; its paths are relative to `base`, models lie in `state`/device unless it says otherwise.

        Raises:
            ConfigError: a setting is missing, unknown, of the wrong type or out of range.
        """
        known: dict[str, Any] = {f.name: f.type for f in fields(cls)}
        given: dict[str, Any] = {"models": str(state / "device" / "models")} | dict(table)
        for name, value in given.items():
            if name not in known:
                remedy = f"It has: {', '.join(known)}"
                raise ConfigError(f"device.{name}: there is no such setting", where=where, remedy=remedy)
            kinds = _KINDS.get(known[name], str)
            if not isinstance(value, kinds) or (type(value) is bool) != (kinds is bool):
                raise ConfigError(f"device.{name}: {value!r} is of the wrong type", where=where)
            given[name] = value if known[name] in _KINDS else base / value
        if missing := [name for name in ("frames", "template") if name not in given]:
            raise ConfigError(f"device.{missing[0]} is missing", where=where)
        given["frames"] = _source(given["frames"], base)
        try:
            return cls(**given)
        except ConfigError as error:
            raise ConfigError(f"{error.where}: {error.problem}", where=where, remedy=error.remedy) from None


_KINDS: dict[Any, Any] = {str: str, int: int, float: (int, float), bool: bool}  # all others are paths


def _source(text: str, base: Path) -> str:
    """A folder or file is relative to `base`, a camera or stream is what it is."""
    return text if text.isdigit() or "://" in text else str(base / text)
