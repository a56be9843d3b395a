"""Certificates and the keys of TLS: valid now, for some time to come, and belonging together."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polypfed.core.errors import ConfigError
from polypfed.core.extras import require
from polypfed.doctor.finding import Finding, ok

SOON_DAYS = 30


def certificate(path: Path, remedy: str, now: float | None = None) -> Finding:
    """A PEM certificate is valid now and for a month to come; `remedy` says whence a new one comes."""
    what = f"certificate {path.name}"
    try:
        found = load(path)
    except ConfigError as error:
        return Finding(what, "error", f"{error.where}: {error.problem}", remedy)
    today = datetime.fromtimestamp(time.time() if now is None else now, UTC)
    if today < found.not_valid_before_utc:
        detail = f"is valid from {found.not_valid_before_utc:%Y-%m-%d} only; this clock says {today:%Y-%m-%d}"
        return Finding(what, "error", detail, "Set this machine's clock: timedatectl set-ntp true")
    left = (found.not_valid_after_utc - today).days
    if today >= found.not_valid_after_utc:
        return Finding(what, "error", f"expired on {found.not_valid_after_utc:%Y-%m-%d}", remedy)
    detail = f"valid until {found.not_valid_after_utc:%Y-%m-%d}, {left} days"
    return ok(what, detail) if left >= SOON_DAYS else Finding(what, "note", detail, remedy)


def issued(
    path: Path, authority: Path, remedy: str = "Put the ca.crt that signed it beside it, or have a new one signed"
) -> Finding:
    """A certificate was signed by this authority."""
    what = f"{path.name} by {authority.name}"
    exceptions: Any = require("cryptography.exceptions", extra="flower")
    try:
        load(path).verify_directly_issued_by(load(authority))
    except (ConfigError, ValueError, TypeError, exceptions.InvalidSignature) as error:
        detail = f"{path} was not signed by {authority} ({error or 'signature'})"
        return Finding(what, "error", detail, remedy)
    return ok(what, "signed by it")


def names(path: Path, host: str, remedy: str) -> Finding:
    """A certificate is for the name under which its server is dialled."""
    x509: Any = require("cryptography.x509", extra="flower")
    what = f"names in {path.name}"
    try:
        found = load(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        known = [str(name.value) for name in found]
    except (ConfigError, x509.ExtensionNotFound):
        known = []
    if host in known:
        return ok(what, host)
    return Finding(what, "error", f"is for {', '.join(known) or 'nobody'}, sites dial {host}", remedy)


def secret(path: Path) -> Iterator[Finding]:
    """A private key is there and readable by its owner only."""
    what = f"key {path.name}"
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        yield Finding(what, "error", f"{path}: {error.strerror}", "Copy it from the folder that deploy has made")
        return
    if mode & 0o077:
        yield Finding(what, "error", f"{path} can be read by others (mode {mode:o})", f"chmod 600 {path}")
    else:
        yield ok(what, "readable by its owner only")


def pair(private: Path, public: Path) -> Finding:
    """A private key belongs to a public one: of a certificate, or a file NAME.pub."""
    what = f"{private.name} and {public.name}"
    remedy = f"Put the pair in place that was made together; {public.name} must be of {private.name}"
    try:
        same = _point(_private(private).public_key()) == _point(_public(public))
    except (ConfigError, OSError, ValueError, TypeError) as error:
        return Finding(what, "error", f"{private}: {error}", remedy)
    return ok(what, "belong together") if same else Finding(what, "error", "are not a pair: a wrong key", remedy)


def load(path: Path) -> Any:
    """The certificate in a PEM file.

    Raises:
        ConfigError: it cannot be read, or holds none.
    """
    x509: Any = require("cryptography.x509", extra="flower")
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=path) from None
    except ValueError:
        raise ConfigError("is no certificate", where=path) from None


def _private(path: Path) -> Any:
    form: Any = require("cryptography.hazmat.primitives.serialization", extra="flower")
    data = path.read_bytes()
    read = form.load_ssh_private_key if b"OPENSSH" in data[:64] else form.load_pem_private_key
    return read(data, password=None)


def _public(path: Path) -> Any:
    form: Any = require("cryptography.hazmat.primitives.serialization", extra="flower")
    data = path.read_bytes()
    if b"BEGIN CERTIFICATE" in data:
        return load(path).public_key()
    return form.load_ssh_public_key(data) if data.startswith((b"ssh-", b"ecdsa-")) else form.load_pem_public_key(data)


def _point(key: Any) -> bytes:
    form: Any = require("cryptography.hazmat.primitives.serialization", extra="flower")
    return bytes(key.public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo))
