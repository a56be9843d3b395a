"""A start-up kit of NVFlare's: certificates and keys, a signature if it has one, our settings, the network."""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polypfed.core.errors import ConfigError
from polypfed.core.extras import require
from polypfed.core.messages import one_line
from polypfed.doctor import net, tls
from polypfed.doctor.finding import Finding, ok

STARTUP = Path("startup")
_FILES = {"fed_client.json": "client", "fed_server.json": "server", "fed_admin.json": "client"}  # -> whose certificate
KINDS = {"fed_client.json": "a site", "fed_server.json": "a server", "fed_admin.json": "an administrator"}
_ANEW = "NVFlare's certificates are renewed by provisioning anew: polypfed deploy nvflare, and a kit for everybody"
_AGAIN = "Take this kit anew from whoever has provisioned it"
_FIT = "polypfed nvflare fit KIT puts it on the list"


def is_kit(folder: Path | None) -> bool:
    """Whether it is such a kit, of whatever kind."""
    return folder is not None and any((folder / STARTUP / name).is_file() for name in _FILES)


def kind(folder: Path) -> str:
    """The file in `startup/` that says what a kit is: "fed_client.json", "fed_server.json" or "fed_admin.json"."""
    return next(name for name in _FILES if (folder / STARTUP / name).is_file())


def certificates(folder: Path) -> Iterator[Finding]:
    """The authority, the kit's own certificate and key, and that they belong together."""
    startup, whose = folder / STARTUP, _FILES[kind(folder)]
    authority, own, key = (startup / name for name in ("rootCA.pem", f"{whose}.crt", f"{whose}.key"))
    yield tls.certificate(authority, _ANEW)
    yield tls.certificate(own, _ANEW)
    yield tls.issued(own, authority, _AGAIN)
    yield from tls.secret(key)
    yield tls.pair(key, own)


def own_certificate(folder: Path) -> Path:
    """The kit's own certificate."""
    return folder / STARTUP / f"{_FILES[kind(folder)]}.crt"


def signature(folder: Path) -> Iterator[Finding]:
    """Every file that startup/signature.json names is as the authority has signed it.

    NVFlare 2.9 signs kits of its confidential and encrypted deployments only; in others mutual TLS stands for it.
    """
    startup, what = folder / STARTUP, "signature of the kit"
    if not (startup / "signature.json").is_file():
        yield ok(what, "NVFlare gives none to a kit of this kind")
        return
    try:
        signed = dict(json.loads((startup / "signature.json").read_text(encoding="utf-8")))
        public = tls.load(startup / "rootCA.pem").public_key()
    except (ConfigError, OSError, ValueError) as error:
        yield Finding(what, "error", f"cannot be checked ({one_line(error)})", _AGAIN)
        return
    wrong = [name for name, value in sorted(signed.items()) if not _signed(startup / name, str(value), public)]
    if wrong:
        yield Finding(what, "error", f"{', '.join(wrong)}: not as signed, or missing", _AGAIN)
    else:
        yield ok(what, f"{len(signed)} files are as signed")


def _signed(path: Path, value: str, public: Any) -> bool:
    """Source: nvflare/lighter/utils.py, verify_content: RSA-PSS over SHA-256."""
    hashes: Any = require("cryptography.hazmat.primitives.hashes", extra="nvflare")
    padding: Any = require("cryptography.hazmat.primitives.asymmetric.padding", extra="nvflare")
    exceptions: Any = require("cryptography.exceptions", extra="nvflare")
    form = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.MAX_LENGTH)
    try:
        public.verify(base64.b64decode(value), path.read_bytes(), form, hashes.SHA256())
    except (OSError, ValueError, exceptions.InvalidSignature):
        return False
    return True


def network(folder: Path) -> Iterator[Finding]:
    """A site or an administrator reaches the server; a server can take its ports, under the name that it certifies."""
    told = _json(folder / STARTUP / kind(folder))
    if kind(folder) == "fed_admin.json":
        admin = told.get("admin", {})
        yield net.reachable(f"{admin.get('host', '')}:{admin.get('port', '')}")
        return
    server = (told.get("servers") or [{}])[0]
    target = str(server.get("service", {}).get("target", ""))
    if kind(folder) == "fed_client.json":
        yield net.reachable(target)
        return
    host, _, port = target.rpartition(":")
    yield from (net.free_port(int(p)) for p in (port, server.get("admin_port", "")) if str(p).isdigit())
    yield tls.names(own_certificate(folder), host, _ANEW)


def fitted(folder: Path) -> Iterator[Finding]:
    """Our classes are among those that a job may name; an administrator's kit has no such list."""
    from polypfed.backends.nvflare.kit import CLASSES

    allowed = _json(folder / "local" / "resources.json").get("class_allow_list")
    if allowed is None:
        return
    missing = [name.rpartition(".")[2] for name in CLASSES if name not in allowed]
    what = "kit's class_allow_list"
    yield Finding(what, "error", f"without {', '.join(missing)}", _FIT) if missing else ok(what, "names our classes")


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise ConfigError(f"is not JSON ({error})", where=path, remedy=_AGAIN) from None
    return found if isinstance(found, Mapping) else {}
