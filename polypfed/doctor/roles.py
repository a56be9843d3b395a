"""Which checks a role needs, and on what."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polypfed import config as configs
from polypfed.backends.site_file import SiteFile
from polypfed.core.errors import PolypfedError
from polypfed.doctor import data, device, keys, machine, net, packages, rundirs, tls
from polypfed.doctor import kit as kits
from polypfed.doctor.finding import Finding, guarded, ok

_KIT_FILE = Path("local") / "polypfed.toml"
_NEW_SITE = "Ask the server's owner for the new ca.crt"
_NEW_SERVER = "Sign a new one with ca/ and put it into server/; see docs/deploy-flower.md"


@dataclass(frozen=True)
class Asked:
    """What to look at.

    Attributes:
        file: a study's TOML (researcher), site.toml (site), or the folder server/ (server). A site or a server may name
            a start-up kit of NVFlare's; an administrator asks as a site does.
        directory: where runs, or a board's samples, are kept.
        delegate: of a board, as for --delegate.
        need: extras that are needed beside those of the role.
        quick: leave out what takes seconds: building the detector, decoding every image.
    """

    file: Path | None = None
    directory: Path = Path("runs")
    delegate: str = ""
    need: tuple[str, ...] = ()
    quick: bool = False


def examine(role: str, asked: Asked) -> Iterator[Finding]:
    """All findings of a role; each `what` occurs once."""
    yield from (machine.python(), machine.processors())
    yield from machine.memory()
    yield from packages.base()
    yield from packages.pairs()
    yield from ROLES[role](asked)


def _researcher(asked: Asked) -> Iterator[Finding]:
    yield machine.disk(asked.directory)
    yield machine.clock(machine.installed())
    needed: list[str] = list(asked.need)
    if asked.file is not None:
        found, more, place = _study(asked.file)
        needed += more
        yield found
        if place is not None and not asked.quick:
            yield from data.dataset(place)
    yield from packages.extras(needed)
    if asked.directory.is_dir():
        for run in sorted(p.parent for p in asked.directory.glob("*/run.json")):
            yield from rundirs.lock(run)
            yield from rundirs.checkpoint(run)
    if not asked.quick:
        yield from packages.detector()


def _study(file: Path) -> tuple[Finding, list[str], Path | None]:
    """The study parses; the extras that it needs; its partition, where one is named."""
    try:
        config = configs.load(file)
    except PolypfedError as error:
        lines = str(error).splitlines()
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        remedy = "Correct the file; polypfed init researcher writes one with every setting explained"
        return Finding("study", "error", lines[0] + more, remedy), [], None
    modes: Mapping[str, list[str]] = {"dp": ["dp"], "he": ["he"], "secagg": ["he"], "hybrid": ["he"]}
    carrier = [config.backend.name] if config.backend.name != "local" else []
    trackers = [extra for extra in ("mlflow", "tensorboard", "prometheus") if extra in config.track]
    needed = ["yolo", *carrier, *modes.get(config.privacy.mode, []), *trackers]
    place = Path(str(config.data.partition)) if config.data.partition is not None else None
    return ok("study", f"{file}: {config.federation.rounds} rounds"), needed, place


def _site(asked: Asked) -> Iterator[Finding]:
    if kits.is_kit(asked.file):
        return _guarded_kit(asked)
    file = asked.file or Path("site.toml")
    return guarded("site.toml", lambda: _site_of(file, asked), "polypfed init site writes one")


def _site_of(file: Path, asked: Asked) -> Iterator[Finding]:
    site = SiteFile.load(file)
    yield ok("site.toml", f"site {site.name}")
    yield machine.disk(site.state)
    needs_yolo = site.client.startswith("polypfed.remote")
    yield from packages.extras(["flower", *(["yolo"] if needs_yolo else []), *asked.need])
    base, witnesses = site.path.parent, machine.installed()
    authority, key = (base / str(site.engine.get(k, v)) for k, v in (("certificate", "ca.crt"), ("key", "site.key")))
    if packages.here("cryptography"):
        yield tls.certificate(authority, _NEW_SITE)
        yield from tls.secret(key)
        if key.with_suffix(".pub").exists():
            yield tls.pair(key, key.with_suffix(".pub"))
        witnesses |= _signed(authority)
        for folder in (base / "keys", site.state / "keys"):
            yield from keys.keys(folder, site.name)
    yield machine.clock(witnesses)
    yield net.reachable(str(site.engine.get("server", "")))
    place = site.settings.get("data")
    if isinstance(place, str) and not asked.quick:
        yield from data.dataset(base / place)
    if needs_yolo and not asked.quick:
        yield from packages.detector()


def _server(asked: Asked) -> Iterator[Finding]:
    if kits.is_kit(asked.file):
        yield from _guarded_kit(asked)
        return
    folder = asked.file or Path()
    settings = folder / "server.toml"
    if not settings.is_file():
        yield Finding("server.toml", "error", f"{settings}: no such file", "polypfed deploy flower writes server/")
        return
    yield machine.disk(folder)
    yield from packages.extras(["flower", *asked.need])
    witnesses = machine.installed()
    if packages.here("cryptography"):
        authority, certificate, key = (folder / name for name in ("ca.crt", "server.pem", "server.key"))
        yield tls.certificate(authority, _NEW_SERVER)
        yield tls.certificate(certificate, _NEW_SERVER)
        yield tls.issued(certificate, authority)
        yield from tls.secret(key)
        yield tls.pair(key, certificate)
        witnesses |= _signed(certificate)
    yield machine.clock(witnesses)
    if found := re.search(r"--port (\d+)", _text(folder / "start.sh")):
        yield net.free_port(int(found[1]))
    yield from _registered(folder / "sites")
    run = folder / "run"
    yield from rundirs.lock(run)
    yield from rundirs.checkpoint(run)
    yield from keys.keys(run / "keys")


def _guarded_kit(asked: Asked) -> Iterator[Finding]:
    kit = asked.file or Path()
    return guarded("start-up kit", lambda: _kit(kit, asked), "polypfed deploy nvflare makes one")


def _kit(kit: Path, asked: Asked) -> Iterator[Finding]:
    """A start-up kit of NVFlare's: of a site, a server or an administrator."""
    kind = kits.kind(kit)
    yield ok("kind of kit", f"of {kits.KINDS[kind]}")
    yield machine.disk(kit)
    witnesses = machine.installed()
    site = SiteFile.load(kit / _KIT_FILE) if kind == "fed_client.json" else None
    yolo = site is not None and site.client.startswith("polypfed.remote")
    yield from packages.extras(["nvflare", *(["yolo"] if yolo else []), *asked.need])
    if packages.here("cryptography"):
        yield from kits.certificates(kit)
        yield from kits.signature(kit)
        witnesses |= _signed(kits.own_certificate(kit))
        yield from keys.keys(kit / "local" / "keys", None if site is None else site.name)
        yield from kits.fitted(kit)
    yield machine.clock(witnesses)
    yield from kits.network(kit)
    if site is not None:
        yield ok("polypfed.toml", f"site {site.name}")
        place = site.settings.get("data")
        if isinstance(place, str) and not asked.quick:
            yield from data.dataset(site.path.parent / place)
        if yolo and not asked.quick:
            yield from packages.detector()
    elif kind == "fed_server.json":
        yield from _kit_server(kit)


def _kit_server(kit: Path) -> Iterator[Finding]:
    settings = kit / _KIT_FILE
    if not packages.here("nvflare"):
        return
    from polypfed.backends.nvflare.controller import ServerFile

    file = ServerFile.load(settings)
    yield ok("polypfed.toml", f"{len(file.sites) or 'all'} sites")
    for run in sorted(p.parent for p in file.directory.glob("*/run.json")):
        yield from rundirs.lock(run)
        yield from rundirs.checkpoint(run)


def _registered(folder: Path) -> Iterator[Finding]:
    names = sorted(p.stem for p in folder.glob("*.pub"))
    if names:
        yield ok("sites", ", ".join(names))
    else:
        yield Finding("sites", "error", f"{folder} holds no NAME.pub", "Put every site's public key there")


def _device(asked: Asked) -> Iterator[Finding]:
    yield machine.disk(asked.directory, 0.5)
    yield machine.clock(machine.installed())
    yield from packages.extras(["edge", *asked.need])
    yield device.interpreter()
    if asked.delegate:
        yield from device.delegate(asked.delegate)


def _signed(certificate: Path) -> dict[str, float]:
    """When a certificate was signed: a witness for the clock."""
    try:
        return {certificate.name: tls.load(certificate).not_valid_before_utc.timestamp()}
    except PolypfedError:
        return {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


ROLES: Mapping[str, Callable[[Asked], Any]] = {
    "researcher": _researcher,
    "site": _site,
    "server": _server,
    "device": _device,
}
