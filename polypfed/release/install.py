"""Installing on a device: signatures, then the counter, then a trial run, then the flip. Each step may refuse."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from polypfed.core.errors import ConfigError
from polypfed.core.settings import site_names
from polypfed.release.bundle import Release, read_bundle
from polypfed.release.errors import ReleaseRefused
from polypfed.release.repository import EVERYBODY, _about
from polypfed.release.slots import Slots

Trial = Callable[[Path, Release], None]
"""Raises ReleaseRefused unless the release in the file does its work on this device."""

_LARGEST = 2 << 30  # bytes of a release
_CHUNK = 1 << 20


def prepare(folder: Path, root: bytes, group: str = EVERYBODY) -> Slots:
    """Set up a device: the root it trusts, and its group of the fleet.

    Raises:
        ConfigError: it is set up already, or the group is no plain word.
    """
    site_names([group])
    slots, path = Slots(folder), folder / "root.json"
    if path.exists():
        raise ConfigError("is set up already", where=folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(root)
    slots.keep(replace(slots.state, group=group))
    return slots


def install(folder: Path, source: Path, trial: Trial) -> Release | None:
    """Install the newest release that is for this device; None if it has it.

    Args:
        folder: the device's. source: a copy of the repository's folder `public`, fetched or on a medium.

    Raises:
        ReleaseRefused: a signature, hash, date or version is wrong, or the trial failed. What ran goes on running.
        ConfigError: the device is not set up.
    """
    slots = Slots(folder)
    updater = _updater(folder, source)
    try:
        updater.refresh()
        target = _newest(updater, slots.state.group)
        if target is None or _about(target)["version"] <= slots.state.counter:
            return None
        (folder / "slots").mkdir(exist_ok=True)
        place = folder / "slots" / "arrived"
        updater.download_target(target, str(place))
        data = place.read_bytes()
        place.unlink()
        release = read_bundle(data, target.path)
        if release.card.version != _about(target)["version"]:
            raise ReleaseRefused("names another version than its signature", where=target.path)
    except (RepositoryError, DownloadError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ReleaseRefused(f"refused ({type(error).__name__}: {error})", where=source) from None
    trial(slots.put(data), release)
    slots.flip(hashlib.sha256(data).hexdigest(), release.card.version)
    return release


def _updater(folder: Path, source: Path) -> Updater:
    try:
        root = (folder / "root.json").read_bytes()
    except OSError:
        raise ConfigError("is not set up", where=folder, remedy="polypfed release device ROOT.json") from None
    config, kept = UpdaterConfig(max_delegations=0), folder / "metadata"
    kept.mkdir(exist_ok=True)
    try:
        return Updater(str(kept), "x:metadata/", None, "x:targets/", FromFolder(source), config, bootstrap=root)
    except (RepositoryError, ValueError) as error:
        raise ReleaseRefused(f"the device's root cannot be used ({error})", where=folder) from None


def _newest(updater: Updater, group: str) -> Any:
    """The target with the largest version among those for this group."""
    targets = updater._trusted_set.targets.targets.values()  # ngclient looks targets up by name only
    ours = [t for t in targets if {group, EVERYBODY} & set(_about(t)["groups"])]
    return max(ours, key=lambda t: int(_about(t)["version"]), default=None)


class FromFolder(FetcherInterface):  # type: ignore[misc]  # tuf is optional
    """Files of a folder in place of a network."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self._folder / unquote(url.removeprefix("x:"))
        if not path.resolve().is_relative_to(self._folder.resolve()) or not path.is_file():
            raise DownloadHTTPError(f"{path.name} is not there", 404)
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
