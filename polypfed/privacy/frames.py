"""Frames: pieces of a privacy message that name their job, round, site and place, and are authenticated one by one.

    header (72 bytes, little endian) | body | tag (64 bytes)
    tag = signature over  "polypfed frame 1" | header | SHA-256(body)

Every check but the body's is done on the header, after the tag has been verified. Plain Python, no SEAL.
"""

import hashlib
import hmac
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import ConfigError
from polypfed.core.settings import whole
from polypfed.privacy.errors import FrameRefused

Kind = Literal["update", "sum", "relay", "masked"]
_KINDS = get_args(Kind)
_MAGIC = b"PPHE"
_HEADER = struct.Struct("<4sBBBB8s8s16sIHHQHHIII")
_DOMAIN = b"polypfed frame 1"
TAG = 64
OVERHEAD = _HEADER.size + TAG
SERVER = 0xFFFF
"""The site number of the server."""


class Signer(Protocol):
    """Ed25519PrivateKey of `cryptography`, or Mac."""

    def sign(self, data: bytes, /) -> bytes: ...


class Verifier(Protocol):
    """Ed25519PublicKey of `cryptography`, or Mac; raises if the signature is wrong."""

    def verify(self, signature: bytes, data: bytes, /) -> None: ...


@dataclass(frozen=True)
class Mac:
    """HMAC-SHA512, where sender and receiver share a key of at least 32 bytes."""

    key: bytes

    def __post_init__(self) -> None:
        if len(self.key) < 32:
            raise ConfigError("a key of fewer than 32 bytes", where="key")

    def sign(self, data: bytes) -> bytes:
        """64 bytes."""
        return hmac.digest(self.key, data, "sha512")

    def verify(self, signature: bytes, data: bytes) -> None:
        """Raise ValueError unless it is the tag of the data."""
        if not hmac.compare_digest(signature, self.sign(data)):
            raise ValueError("the tag is wrong")


@dataclass(frozen=True)
class Label:
    """What a message belongs to; every frame carries it and every receiver compares it.

    Attributes:
        job: 16 bytes of the run's id.
        round: the server round; attempt: its repetition.
        key: 8 bytes of the fingerprint of the job key (zeros without one).
        params: 8 bytes of the parameters' digest.
        length: values of the vector.
    """

    job: bytes
    round: int
    attempt: int
    key: bytes
    params: bytes
    length: int

    def __post_init__(self) -> None:
        if (len(self.job), len(self.key), len(self.params)) != (16, 8, 8):
            raise ConfigError("job, key and params are 16, 8 and 8 bytes", where="label")
        whole("round", self.round, 0, (1 << 32) - 1)
        whole("attempt", self.attempt, 0, (1 << 16) - 1)


@dataclass(frozen=True)
class Frame:
    """One frame. `site`: the sender's number; `sites`: how many are summed in it; `full`: it carries c1 itself."""

    label: Label
    kind: Kind
    site: int
    sites: int
    index: int
    count: int
    body: bytes
    full: bool = False

    def seal(self, signer: Signer) -> bytes:
        """The frame's bytes."""
        at = self.label
        header = _HEADER.pack(
            _MAGIC, 1, _KINDS.index(self.kind), int(self.full), 0, at.params, at.key, at.job, at.round, at.attempt,
            self.site, at.length, self.sites, 0, self.index, self.count, len(self.body),
        )  # fmt: skip
        return b"".join([header, self.body, _tag(signer, header, self.body)])


def _tag(signer: Signer, header: bytes, body: bytes) -> bytes:
    return signer.sign(_DOMAIN + header + hashlib.sha256(body).digest())


def read(data: bytes, verifiers: Mapping[int, Verifier], *, limit: int = 1 << 24) -> Frame:
    """The frame in `data`, its tag verified; nothing else about it has been checked.

    Args:
        verifiers: by site number; the server's number is SERVER.
        limit: refuse larger frames unread.

    Raises:
        FrameRefused: size, header, unknown-site or signature.
    """
    if not OVERHEAD <= len(data) <= limit:
        raise FrameRefused("size", f"{len(data)} bytes are no frame of {OVERHEAD} to {limit}")
    (
        magic,
        version,
        kind,
        full,
        zero1,
        params,
        key,
        job,
        number,
        attempt,
        site,
        length,
        sites,
        zero2,
        index,
        count,
        size,
    ) = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != 1:
        raise FrameRefused("header", "does not begin like a frame of version 1")
    if kind >= len(_KINDS) or full > 1 or zero1 or zero2:
        raise FrameRefused("header", "a field has a value without a meaning")
    if size != len(data) - OVERHEAD:
        raise FrameRefused("size", f"the body should have {size} bytes and has {len(data) - OVERHEAD}")
    if site not in verifiers:
        raise FrameRefused("unknown-site", f"site {site} takes no part")
    header, body, tag = data[: _HEADER.size], data[_HEADER.size : -TAG], data[-TAG:]
    try:
        verifiers[site].verify(tag, _DOMAIN + header + hashlib.sha256(body).digest())
    except Exception:  # noqa: BLE001  # each verifier has its own error; whatever it says, the frame is not used
        raise FrameRefused("signature", "the tag does not fit the frame", where=f"site {site}") from None
    label = Label(job, number, attempt, key, params, length)
    return Frame(label, _KINDS[kind], site, sites, index, count, body, bool(full))


def joined(frames: Iterable[bytes]) -> NDArray[np.uint8]:
    """Frames one after another, (bytes,) uint8: how an upload or a sum travels inside an Update or a Task."""
    return np.frombuffer(b"".join(frames), np.uint8)


def split(data: NDArray[np.uint8] | bytes) -> Iterator[bytes]:
    """The frames of `joined`, one copied at a time; their contents are not checked.

    Raises:
        FrameRefused: size: the bytes do not end with a whole frame.
    """
    buffer: Any = data  # of bytes either way
    view, start = memoryview(buffer).cast("B"), 0
    while start < len(view):
        if len(view) - start < OVERHEAD:
            raise FrameRefused("size", f"{len(view) - start} bytes follow the last frame")
        stop = start + OVERHEAD + _HEADER.unpack_from(view, start)[-1]
        if stop > len(view):
            raise FrameRefused("size", "the last frame is cut short")
        yield bytes(view[start:stop])
        start = stop


def expect(frame: Frame, label: Label, kinds: tuple[Kind, ...]) -> None:
    """Raise unless the frame belongs to `label` and is of one of `kinds`.

    Raises:
        FrameRefused: wrong-job, stale-round, wrong-key, wrong-parameters or header.
    """
    got, who = frame.label, f"site {frame.site}"
    if got.job != label.job:
        raise FrameRefused("wrong-job", "belongs to another job", where=who)
    if (got.round, got.attempt) != (label.round, label.attempt):
        problem = f"is of round {got.round}.{got.attempt}, not {label.round}.{label.attempt}"
        raise FrameRefused("stale-round", problem, where=who)
    if got.key != label.key:
        raise FrameRefused("wrong-key", f"was made with key {got.key.hex()}, not {label.key.hex()}", where=who)
    if got.params != label.params or got.length != label.length:
        raise FrameRefused("wrong-parameters", "was made for other parameters or another length", where=who)
    if frame.kind not in kinds:
        raise FrameRefused("header", f"is of kind {frame.kind!r}, not {' or '.join(kinds)}", where=who)
