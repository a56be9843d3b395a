"""Encryption at rest: AES-256-GCM with one key per store, kept in a file of its own.

Each value is bound to its name, so that files cannot be exchanged for one another. Losing the key loses the data; that
is also how it is wiped, since overwriting blocks of flash memory promises nothing.
"""

import os
import secrets
from pathlib import Path
from typing import Any

from polypfed.core.errors import DataError
from polypfed.core.extras import require

_NONCE, _KEY, _MAGIC = 12, 32, b"PFSV\x01"


class Vault:
    """Seal and open bytes.

    Args:
        key_file: 32 random bytes; made, readable by its owner alone, if it is missing and `create` is set. It is best
            kept on another medium than the store.

    Raises:
        DataError: the key is missing, has another length, or others may read it.
        MissingExtraError: the package `cryptography` is not installed.
    """

    def __init__(self, key_file: Path, create: bool = True) -> None:
        self.key_file = Path(key_file)
        aead: Any = require("cryptography.hazmat.primitives.ciphers.aead", extra="edge")
        self._cipher = aead.AESGCM(self._key(create))

    def _key(self, create: bool) -> bytes:
        try:
            if not self.key_file.exists() and create:
                self.key_file.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(handle, "wb") as file:
                    file.write(secrets.token_bytes(_KEY))
                    file.flush()
                    os.fsync(file.fileno())
            mode, key = self.key_file.stat().st_mode, self.key_file.read_bytes()
        except OSError as error:
            raise DataError(f"the key cannot be read ({error.strerror})", where=self.key_file) from None
        if len(key) != _KEY:
            raise DataError(f"a key has {_KEY} bytes, this file {len(key)}", where=self.key_file)
        if mode & 0o077:
            raise DataError("others may read the key", where=self.key_file, remedy="chmod 600")
        return key

    def seal(self, data: bytes, name: str) -> bytes:
        """`data`, encrypted and bound to `name`."""
        nonce = secrets.token_bytes(_NONCE)
        sealed: bytes = self._cipher.encrypt(nonce, data, name.encode())
        return _MAGIC + nonce + sealed

    def open(self, sealed: bytes, name: str) -> bytes:
        """The inverse of `seal`.

        Raises:
            DataError: changed, cut short, of another name, or sealed with another key.
        """
        from cryptography.exceptions import InvalidTag

        start = len(_MAGIC) + _NONCE
        if sealed[: len(_MAGIC)] != _MAGIC or len(sealed) < start + 16:
            raise DataError("is not a file of this store", where=name)
        try:
            data: bytes = self._cipher.decrypt(sealed[len(_MAGIC) : start], sealed[start:], name.encode())
        except InvalidTag:
            raise DataError("was changed, or belongs to another key", where=name) from None
        return data

    def destroy(self) -> None:
        """Overwrite and remove the key: nothing that it sealed can be opened again."""
        try:
            with open(self.key_file, "r+b") as file:
                file.write(secrets.token_bytes(_KEY))
                file.flush()
                os.fsync(file.fileno())
            self.key_file.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise DataError(f"the key cannot be removed ({error.strerror})", where=self.key_file) from None
