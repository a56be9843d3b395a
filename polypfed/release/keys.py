"""Signing keys of people and of the repository: Ed25519, PKCS8 PEM, readable by their owner only."""

import stat
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from polypfed.core.errors import ConfigError
from polypfed.core.files import write_atomic


def make_key(path: Path) -> CryptoSigner:
    """A new key in a new file.

    Raises:
        ConfigError: the file exists.
    """
    if path.exists():
        raise ConfigError(
            "exists already", where=path, remedy="Choose another name: a key that is lost cannot be had back"
        )
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_atomic(path, pem, mode=0o600)
    return open_key(path)


def open_key(path: Path) -> CryptoSigner:
    """The key in a file.

    Raises:
        ConfigError: it is no Ed25519 key, or can be read by others.
    """
    try:
        mode, pem = stat.S_IMODE(path.stat().st_mode), path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=path) from None
    if mode & 0o077:
        raise ConfigError(f"can be read by others (mode {mode:o})", where=path, remedy=f"chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"is no private key ({type(error).__name__})", where=path) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError("is no Ed25519 key", where=path)
    return CryptoSigner(key)
