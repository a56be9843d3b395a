"""The job key: made by one site, wrapped to each other one, changed when the members change. The server has none.

    leader   key = JobKey.create(...);  wrapped = wrap(key, roster, leader)        the server relays the pieces
    site     key = unwrap(wrapped[name], identity, roster, after=last epoch)

Wrapping is HPKE (RFC 9180: X25519, HKDF-SHA256, AES-256-GCM), which does not say who sent it; the leader signs it.
Python cannot promise to clear memory: a key lives until its process ends.
"""

import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from polypfed.core.errors import ConfigError, MessageError
from polypfed.core.extras import require
from polypfed.core.files import write_framed
from polypfed.core.settings import whole
from polypfed.privacy.errors import KeyRefused
from polypfed.privacy.params import HEParams
from polypfed.privacy.roster import Identity, Roster, fingerprint, read_secret
from polypfed.privacy.seal import KeyHolder

_KIND = "polypfed job key 1"
_WRAP = struct.Struct("<4sBHI")
_SEAL = 32


def job_id(run: str) -> bytes:
    """The 16 bytes that name a run in frames and keys."""
    return hashlib.sha256(b"polypfed job" + run.encode()).digest()[:16]


@dataclass(frozen=True)
class JobKey:
    """What the sites of one job share. Its repr shows no secret.

    Attributes:
        job: 16 bytes, from `job_id`.
        epoch: 1 for the first key of the job, one more after each rotation.
        params: of the ciphertexts; made for the number of members.
        members: names of those who hold it.
        secret: the BFV key, 8 N bytes.
        seal: 32 bytes, for states that sites hand to each other.
    """

    job: bytes
    epoch: int
    params: HEParams
    members: tuple[str, ...]
    secret: bytes
    seal: bytes

    def __repr__(self) -> str:
        return f"JobKey(job={self.job.hex()}, epoch={self.epoch}, members={len(self.members)}, id={self.id.hex()})"

    @classmethod
    def create(cls, run: str, params: HEParams, roster: Roster, epoch: int = 1) -> "JobKey":
        """A new key.

        Raises:
            ConfigError: the parameters do not admit all members.
        """
        whole("epoch", epoch, 1, (1 << 32) - 1)
        if len(roster.members) > params.sites:
            problem = f"{len(roster.members)} members, the parameters admit {params.sites}"
            raise ConfigError(problem, where="params", remedy="Derive them with HEParams.for_sites")
        secret, seal = KeyHolder.new_secret(params), os.urandom(_SEAL)
        return cls(job_id(run), epoch, params, tuple(roster.names), secret, seal)

    @cached_property
    def id(self) -> bytes:
        """8 bytes that name the key in frames."""
        return hashlib.sha256(b"polypfed key id" + self._body).digest()[:8]

    @property
    def fingerprint(self) -> str:
        """For logs: says which key, and nothing of it."""
        return fingerprint(b"job key", self._body)

    @property
    def _body(self) -> bytes:
        return self.secret + self.seal

    @property
    def _header(self) -> dict[str, Any]:
        params = [self.params.profile, self.params.sites, self.params.lanes]
        members = list(self.members)
        return {"kind": _KIND, "job": self.job.hex(), "epoch": self.epoch, "params": params, "members": members}

    def save(self, path: Path) -> None:
        """Write the key, readable by the owner only."""
        write_framed(path, self._header, self._body, mode=0o600)

    @classmethod
    def load(cls, path: Path) -> "JobKey":
        """The inverse of `save`.

        Raises:
            KeyRefused: the file is missing, damaged, of another kind, or readable by others.
        """
        header, body = read_secret(path, _KIND)
        try:
            job, members = bytes.fromhex(header["job"]), tuple(map(str, header["members"]))
            params = HEParams(*header["params"])
            epoch = int(header["epoch"])
        except (KeyError, TypeError, ValueError) as error:
            raise KeyRefused(f"is no job key ({error})", where=path) from None
        if len(job) != 16 or len(body) != 8 * params.degree + _SEAL:
            raise KeyRefused("has the wrong length", where=path)
        return cls(job, epoch, params, members, body[:-_SEAL], body[-_SEAL:])


def inspect(path: Path) -> dict[str, Any]:
    """What may be shown of a key file: job, epoch, members, parameters, fingerprint.

    Raises:
        KeyRefused: it is no job key.
    """
    key = JobKey.load(path)
    shown = {k: v for k, v in key._header.items() if k != "kind"}
    return shown | {"id": key.id.hex(), "fingerprint": key.fingerprint, "bits": round(key.params.bits, 2)}


def leader(roster: Roster, run: str) -> str:
    """The site that makes the job key: fixed by the run's id, so nobody chooses it."""
    return min(roster.names, key=lambda name: hashlib.sha256(job_id(run) + name.encode()).digest())


def rotate(key: JobKey, run: str, roster: Roster, params: HEParams | None = None) -> JobKey:
    """The key of the next epoch; frames of the old one are refused from then on.

    Args:
        roster: the members now.
        params: new parameters if there are now more members than the old ones admit.

    Raises:
        KeyRefused: the key belongs to another run.
    """
    if key.job != job_id(run):
        raise KeyRefused("belongs to another run", where=run)
    return JobKey.create(run, params or key.params, roster, key.epoch + 1)


def wrap(key: JobKey, roster: Roster, sender: Identity) -> dict[str, bytes]:
    """The key for each member, by name; only that member can open it.

    Raises:
        KeyRefused: the sender is not in the roster, or the roster is not the one that the key was made for.
    """
    if key.members != tuple(roster.names) or roster[sender.name] != sender.public:
        raise KeyRefused("the roster is another one", where=sender.name, remedy="Rotate the key")
    x25519 = require("cryptography.hazmat.primitives.asymmetric.x25519", extra="he")
    number, wrapped = roster.number(sender.name), {}
    params = "\x1f".join(map(str, key._header["params"])).encode()
    head = _WRAP.pack(b"PPJK", len(params), number, key.epoch) + params
    for member in roster.members:
        info = head + _info(key.job, roster, member.name)
        to = x25519.X25519PublicKey.from_public_bytes(member.transport)
        body = head + _suite().encrypt(key._body, to, info=info)
        wrapped[member.name] = body + sender.signer.sign(b"polypfed wrapped key 1" + info + body)
    return wrapped


def unwrap(data: bytes, identity: Identity, roster: Roster, run: str, after: int = 0) -> JobKey:
    """The job key in a wrapped piece.

    Args:
        roster: this site's own, pinned copy.
        after: the epoch of the newest key known; older and equal ones are refused.

    Raises:
        KeyRefused: the piece is for another site, run or roster, is not signed by a member, is damaged, or is old.
    """
    try:
        magic, size, number, epoch = _WRAP.unpack_from(data)
        head = data[: _WRAP.size + size]
        profile, sites, lanes = head[_WRAP.size :].decode().split("\x1f")
        params = HEParams(profile, int(sites), int(lanes))  # type: ignore[arg-type]  # refused if it is no profile
    except (struct.error, ValueError) as error:
        raise KeyRefused(f"is no wrapped key ({error})", where=identity.name) from None
    if magic != b"PPJK" or number >= len(roster.members):
        raise KeyRefused("is no wrapped key of a member", where=identity.name)
    body, tag = data[:-64], data[-64:]
    info = head + _info(job_id(run), roster, identity.name)
    exceptions = require("cryptography.exceptions", extra="he")
    try:
        roster.members[number].verifier.verify(tag, b"polypfed wrapped key 1" + info + body)
        plain = _suite().decrypt(body[len(head) :], identity.transport, info=info)
    except (exceptions.InvalidSignature, exceptions.InvalidTag):
        problem = "was not made for this site, run and roster, or is damaged"
        raise KeyRefused(problem, where=identity.name, remedy="Compare the rosters' fingerprints") from None
    if epoch <= after:
        raise KeyRefused(f"is of epoch {epoch}, {after} is known already", where=identity.name)
    if len(plain) != 8 * params.degree + _SEAL:
        raise KeyRefused("has the wrong length", where=identity.name)
    return JobKey(job_id(run), epoch, params, tuple(roster.names), plain[:-_SEAL], plain[-_SEAL:])


def seal_state(key: JobKey, round: int, data: bytes) -> bytes:
    """A model and strategy state for sites that join late: AES-256-GCM under the job key, bound to job and round."""
    nonce = os.urandom(12)
    return nonce + bytes(_state_cipher(key).encrypt(nonce, data, _state_label(key, round)))


def open_state(key: JobKey, round: int, data: bytes) -> bytes:
    """The inverse of `seal_state`.

    Raises:
        MessageError: the data is damaged, or of another job, key or round.
    """
    exceptions = require("cryptography.exceptions", extra="he")
    try:
        return bytes(_state_cipher(key).decrypt(data[:12], data[12:], _state_label(key, round)))
    except (exceptions.InvalidTag, ValueError):
        raise MessageError("the sealed state is damaged, or of another job, key or round") from None


def _state_cipher(key: JobKey) -> Any:
    derived = hashlib.sha256(b"polypfed state cipher" + key.seal).digest()  # seal is uniform: one hash separates uses
    return require("cryptography.hazmat.primitives.ciphers.aead", extra="he").AESGCM(derived)


def _state_label(key: JobKey, round: int) -> bytes:
    return b"polypfed state 1" + key.job + key.id + struct.pack("<Q", round)


def _info(job: bytes, roster: Roster, name: str) -> bytes:
    return job + roster.digest + name.encode()


def _suite() -> Any:
    hpke = require("cryptography.hazmat.primitives.hpke", extra="he")
    return hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def members_changed(key: JobKey, names: Sequence[str]) -> bool:
    """Must the key be rotated before a round with these sites?"""
    return set(key.members) != set(names)
