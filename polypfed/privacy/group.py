"""The sites of one attempt at a masked round, their public keys, and what two of them derive together."""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from polypfed.core.extras import require
from polypfed.core.settings import whole
from polypfed.privacy.errors import FrameRefused, IncompatiblePrivacy
from polypfed.privacy.masks import Ring
from polypfed.privacy.roster import Roster

LEAST, MOST = 3, 64
"""Sites in a group: with two, each knows the other's update from the sum; work grows with the square."""

_KEYS = struct.Struct("<32s32s32s64s")


@dataclass(frozen=True)
class Group:
    """The sites of one attempt of one round; equal at the server and at all sites.

    Args:
        job: 16 bytes; round, attempt: as in frames. A new attempt needs new keys.
        roster: the pinned one; names: the sites of this attempt.
        threshold: sites that must survive; more than half of the group.
        ring: in which is added.
        length: slots of a vector.

    Raises:
        IncompatiblePrivacy: the group is too small or too large, or the threshold no majority.
    """

    job: bytes
    round: int
    attempt: int
    roster: Roster
    names: tuple[str, ...]
    threshold: int
    ring: Ring
    length: int

    def __post_init__(self) -> None:
        count = len(set(self.names))
        if not LEAST <= count <= MOST or count < len(self.names):
            remedy = "Use he, which needs 2" if count < LEAST else "Split the sites into groups"
            problem = f"secure aggregation needs {LEAST} to {MOST} different sites, not {len(self.names)}"
            raise IncompatiblePrivacy(problem, where="secagg", remedy=remedy)
        if not count < 2 * self.threshold <= 2 * count:
            raise IncompatiblePrivacy(f"a threshold of {self.threshold} is no majority of {count}", where="threshold")
        whole("round", self.round, 0, (1 << 32) - 1)
        whole("attempt", self.attempt, 0, (1 << 16) - 1)
        for name in self.names:
            self.roster.number(name)

    @cached_property
    def context(self) -> bytes:
        """What every signature and key of the attempt is bound to."""
        head = struct.pack("<16sIHHQ", self.job, self.round, self.attempt, self.threshold, self.ring.modulus)
        digest = hashlib.sha256(head + self.roster.digest + struct.pack("<Q", self.length))
        digest.update("\x1f".join(sorted(self.names)).encode())
        return b"polypfed secagg 1" + digest.digest()

    def point(self, name: str) -> int:
        """Where a site's shares are taken."""
        return self.roster.number(name) + 1


@dataclass(frozen=True)
class RoundKeys:
    """What a site advertises: 32 bytes each."""

    seal: bytes
    mask: bytes
    commitment: bytes

    def commits_to(self, seed: bytes) -> bool:
        """Is it the seed of this site's self-mask?"""
        return hashlib.sha256(seed).digest() == self.commitment

    def belongs_to(self, secret: bytes) -> bool:
        """Is it the private key of this site's pair masks?"""
        return public(private(secret)) == self.mask


def read_keys(group: Group, advertised: Mapping[str, bytes]) -> dict[str, RoundKeys]:
    """The public keys of those who sent some, each signature checked against the roster.

    Raises:
        FrameRefused: size, signature, unknown-site; incomplete: fewer sites than the threshold.
    """
    found: dict[str, RoundKeys] = {}
    for name, data in sorted(advertised.items()):
        if name not in group.names:
            raise FrameRefused("unknown-site", "takes no part", where=name)
        if len(data) != _KEYS.size:
            raise FrameRefused("size", f"{len(data)} bytes are no keys", where=name)
        *keys, signature = _KEYS.unpack(data)
        verify(group, name, signature, b"keys" + data[:96])
        found[name] = RoundKeys(*keys)
    if len(found) < max(LEAST, group.threshold):
        raise FrameRefused("incomplete", f"{len(found)} sites sent keys, {max(LEAST, group.threshold)} are needed")
    return found


def pair_seed(group: Group, own: Any, peer_key: bytes, one: str, other: str) -> bytes:
    """32 bytes that two sites share in this attempt."""
    low, high = sorted((one, other))
    return derive(own, peer_key, b"mask" + group.context + f"\x1f{low}\x1f{high}".encode())


def derive(own: Any, peer_key: bytes, info: bytes) -> bytes:
    """32 bytes from a key agreement, for one use.

    Raises:
        FrameRefused: share: the peer's key is no usable point.
    """
    hashes = require("cryptography.hazmat.primitives.hashes", extra="he")
    hkdf = require("cryptography.hazmat.primitives.kdf.hkdf", extra="he")
    x25519 = require("cryptography.hazmat.primitives.asymmetric.x25519", extra="he")
    try:
        shared = own.exchange(x25519.X25519PublicKey.from_public_bytes(peer_key))
    except ValueError:  # a point of small order
        raise FrameRefused("share", "a public key is not usable") from None
    return bytes(hkdf.HKDF(hashes.SHA256(), 32, b"polypfed secagg", info).derive(shared))


def verify(group: Group, name: str, signature: bytes, statement: bytes) -> None:
    """Raise FrameRefused unless `name` has signed the statement in this attempt."""
    invalid = require("cryptography.exceptions", extra="he").InvalidSignature
    try:
        group.roster[name].verifier.verify(signature, group.context + statement)
    except invalid:
        raise FrameRefused("signature", "a signature is wrong or of another attempt", where=name) from None


def new_key() -> Any:
    """An X25519 private key."""
    return require("cryptography.hazmat.primitives.asymmetric.x25519", extra="he").X25519PrivateKey.generate()


def private(secret: bytes) -> Any:
    """The X25519 private key of these 32 bytes."""
    x25519 = require("cryptography.hazmat.primitives.asymmetric.x25519", extra="he")
    return x25519.X25519PrivateKey.from_private_bytes(secret)


def public(key: Any) -> bytes:
    """The public half, 32 bytes."""
    return bytes(key.public_key().public_bytes_raw())
