"""Who takes part: each site's long-lived keys, and a roster of their public halves to compare by fingerprint."""

import hashlib
import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from polypfed.core.errors import CheckpointError, ConfigError
from polypfed.core.extras import require
from polypfed.core.files import read_framed, write_framed
from polypfed.core.settings import site_names
from polypfed.privacy.errors import KeyRefused
from polypfed.privacy.frames import SERVER, Signer, Verifier

_ED25519 = "cryptography.hazmat.primitives.asymmetric.ed25519"
_X25519 = "cryptography.hazmat.primitives.asymmetric.x25519"
_KIND = "polypfed identity 1"


def fingerprint(*parts: bytes) -> str:
    """SHA-256 as 64 hex digits in groups of eight, for people to compare."""
    digest = hashlib.sha256(b"".join(len(p).to_bytes(4, "little") + p for p in parts)).hexdigest()
    return " ".join(digest[i : i + 8] for i in range(0, 64, 8))


@dataclass(frozen=True)
class Member:
    """The public half of an identity: 32 bytes that verify its signatures, 32 bytes that keys are wrapped to."""

    name: str
    signing: bytes
    transport: bytes

    def __post_init__(self) -> None:
        site_names([self.name])
        if (len(self.signing), len(self.transport)) != (32, 32):
            raise ConfigError("public keys are 32 bytes each", where=self.name)

    @property
    def fingerprint(self) -> str:
        """What administrators compare by telephone before they trust a roster."""
        return fingerprint(b"member", self.name.encode(), self.signing, self.transport)

    @property
    def verifier(self) -> Verifier:
        """Of this member's signatures."""
        found: Verifier = require(_ED25519, extra="he").Ed25519PublicKey.from_public_bytes(self.signing)
        return found


@dataclass(frozen=True)
class Identity:
    """A member's own private keys: 32 bytes each. Its repr shows neither."""

    name: str
    _signing: bytes
    _transport: bytes

    def __repr__(self) -> str:
        return f"Identity({self.name!r})"

    @classmethod
    def create(cls, name: str) -> "Identity":
        """New keys from the operating system's randomness."""
        site_names([name])
        signing = require(_ED25519, extra="he").Ed25519PrivateKey.generate()
        transport = require(_X25519, extra="he").X25519PrivateKey.generate()
        return cls(name, signing.private_bytes_raw(), transport.private_bytes_raw())

    @property
    def signer(self) -> Signer:
        """Ed25519."""
        found: Signer = require(_ED25519, extra="he").Ed25519PrivateKey.from_private_bytes(self._signing)
        return found

    @property
    def transport(self) -> Any:
        """The X25519 private key that wrapped keys are opened with."""
        return require(_X25519, extra="he").X25519PrivateKey.from_private_bytes(self._transport)

    @property
    def public(self) -> Member:
        """The half for the roster."""
        signing: Any = self.signer
        return Member(
            self.name, signing.public_key().public_bytes_raw(), self.transport.public_key().public_bytes_raw()
        )

    def save(self, path: Path) -> None:
        """Write the private keys, readable by the owner only."""
        write_framed(path, {"kind": _KIND, "name": self.name}, self._signing + self._transport, mode=0o600)

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """The inverse of `save`.

        Raises:
            KeyRefused: the file is missing, damaged, of another kind, or readable by others.
        """
        header, body = read_secret(path, _KIND)
        if len(body) != 64:
            raise KeyRefused("holds no pair of keys", where=path)
        return cls(str(header.get("name")), body[:32], body[32:])


def read_secret(path: Path, kind: str) -> tuple[dict[str, Any], bytes]:
    """Header and body of a key file.

    Raises:
        KeyRefused: the file is missing, damaged, of another kind, or readable by others.
    """
    try:
        header, body = read_framed(path)
        mode = stat.S_IMODE(path.stat().st_mode)
    except CheckpointError as error:
        raise KeyRefused(error.problem, where=path) from None
    if header.get("kind") != kind:
        raise KeyRefused(f"is {header.get('kind')!r}, not {kind!r}", where=path)
    if mode & 0o077:
        raise KeyRefused(f"can be read by others (mode {mode:o})", where=path, remedy=f"chmod 600 {path}")
    return header, body


@dataclass(frozen=True)
class Roster:
    """The members of a job in order of name, and the server's public keys.

    A member's number is its place in that order. All members must hold the same roster: `digest` is part of every
    wrapped key, so a roster that the server has altered for one site is noticed.
    """

    members: tuple[Member, ...]
    server: Member

    def __post_init__(self) -> None:
        site_names([m.name for m in self.members])
        if sorted(m.name for m in self.members) != [m.name for m in self.members]:
            object.__setattr__(self, "members", tuple(sorted(self.members, key=lambda m: m.name)))
        keys = [key for m in (*self.members, self.server) for key in (m.signing, m.transport)]
        if len(set(keys)) < len(keys):
            raise ConfigError("two members share a key", where="roster")
        if len(self.members) >= SERVER:
            raise ConfigError(f"{len(self.members)} members are too many", where="roster")

    @property
    def names(self) -> list[str]:
        """In the order of their numbers."""
        return [m.name for m in self.members]

    def number(self, name: str) -> int:
        """A member's number.

        Raises:
            KeyRefused: nobody is called so.
        """
        if name not in self.names:
            raise KeyRefused("is not in the roster", where=name)
        return self.names.index(name)

    def __getitem__(self, name: str) -> Member:
        return self.members[self.number(name)]

    @property
    def verifiers(self) -> dict[int, Verifier]:
        """By number, for `Accumulator`."""
        return {number: member.verifier for number, member in enumerate(self.members)}

    @cached_property
    def digest(self) -> bytes:
        """32 bytes: equal rosters, equal digests."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).digest()

    def to_json(self) -> dict[str, Any]:
        """Public keys as hex."""
        return {"members": [_plain(m) for m in self.members], "server": _plain(self.server)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Roster":
        """The inverse of `to_json`.

        Raises:
            KeyRefused: the value describes no roster.
        """
        try:
            return cls(tuple(_member(m) for m in value["members"]), _member(value["server"]))
        except (KeyError, TypeError, ValueError) as error:
            raise KeyRefused(f"is no roster ({error})", where="roster") from None

    def without(self, names: Sequence[str]) -> "Roster":
        """The roster after some have left or been revoked; rotate the job key then."""
        return Roster(tuple(m for m in self.members if m.name not in names), self.server)


def _plain(member: Member) -> dict[str, str]:
    return {"name": member.name, "signing": member.signing.hex(), "transport": member.transport.hex()}


def _member(value: Mapping[str, Any]) -> Member:
    return Member(value["name"], bytes.fromhex(value["signing"]), bytes.fromhex(value["transport"]))
