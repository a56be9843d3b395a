"""What TenSEAL does for us: keys, encryption and decryption of single BFV ciphertexts, in SEAL's own byte streams.

TenSEAL's vectors and contexts cannot do without relinearisation keys and never use seeds, so its `sealapi` is called
directly. SEAL reads and writes by path only: an anonymous memory file where the system has one.

A ciphertext in a stream: a header of 16 bytes, then (compressed by zstd) parameters id and sizes (73 bytes), an array
of 64-bit coefficients, and either the second polynomial or the 64-byte seed it grows from. Slots are the coefficients
of the plain polynomial: they add one by one as they would after SEAL's batch encoding, which takes Python lists.
"""

import os
import struct
import sys
import tempfile
import zlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import ConfigError
from polypfed.core.extras import require
from polypfed.privacy.errors import KeyRefused
from polypfed.privacy.params import HEParams
from polypfed.privacy.slots import Integers

SEED = 64
_HEADER = struct.Struct("<HBBBBHQ")  # magic, size of this header, version major and minor, compression, 0, total size
_PREFIX = 73  # parameters id, NTT flag, polynomials, degree, primes, scale, correction factor
_PLAIN_PREFIX = 72  # parameters id, coefficients, scale, and the header and the length of the array


@dataclass(frozen=True)
class Ciphertexts:
    """m ciphertexts: c0 (m, N) uint64; and seeds of c1 (m, 64) uint8 each, one per summed site, or c1 itself, or both.

    c1 is the sum of all polynomials the seeds grow to, and of `c1`.
    """

    c0: NDArray[np.uint64]
    seeds: tuple[NDArray[np.uint8], ...] = ()
    c1: NDArray[np.uint64] | None = None


class Channel:
    """A path through which SEAL's bytes pass; one per thread, made after a fork.

    In memory (memfd, else a file in /dev/shm); on systems with neither, a file that only its owner can read and that is
    removed with the channel.
    """

    def __init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self.level, self._fd, self.path = _open_channel()
        self._pid = os.getpid()

    def read(self) -> bytes:
        """What SEAL has just written. It truncates the file before it writes."""
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0)

    def write(self, *parts: bytes | memoryview) -> str:
        """Put bytes there for SEAL to load; the path."""
        if self._pid != os.getpid():  # children would write over each other's bytes
            self._open()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"".join(parts), 0)
        return self.path

    def __del__(self) -> None:
        if self._pid == os.getpid() and self.level != "memfd":
            Path(self.path).unlink(missing_ok=True)
        os.close(self._fd)


def _open_channel() -> tuple[str, int, str]:
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").exists():
        fd = os.memfd_create("polypfed", os.MFD_CLOEXEC)
        return "memfd", fd, f"/proc/self/fd/{fd}"
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    fd, path = tempfile.mkstemp(prefix="polypfed-", dir=memory)  # mode 0600
    return "shm" if memory else "file", fd, path


class Scheme:
    """The public side: a SEAL context, and the way between its streams and arrays. Holds no key; not for two threads.

    Raises:
        MissingExtraError: tenseal is not installed.
        ConfigError: SEAL does not accept the parameters at their level of security.
    """

    def __init__(self, params: HEParams) -> None:
        self.params = params
        self.api: Any = require("tenseal.sealapi", extra="he")
        self.channel = Channel()
        api = self.api
        wanted = api.EncryptionParameters(api.SCHEME_TYPE.BFV)
        wanted.set_poly_modulus_degree(params.degree)
        primes = api.CoeffModulus.Create(params.degree, [params.prime_bits])
        wanted.set_coeff_modulus(primes)
        wanted.set_plain_modulus(params.slots.modulus)
        self.context = api.SEALContext(wanted, True, getattr(api.SEC_LEVEL_TYPE, params.security))
        if primes[0].value() != params.prime or not self.context.parameters_set():
            raise ConfigError(f"SEAL refuses {params}: {self.context.parameters_error_name()}", where="profile")

    @cached_property
    def seeded(self) -> bool:
        """Can this TenSEAL make ciphertexts of half the size?"""
        return hasattr(self.api._sealapi_cpp, "SerializableCiphertext")

    @cached_property
    def _frame(self) -> tuple[int, int, int, bytes]:
        """(magic, major, minor, prefix) of this SEAL, read off an empty ciphertext: no key is needed."""
        empty = self.api.Ciphertext(self.context)
        empty.resize(self.context, 2)
        empty.save(self.channel.write())
        stream = self.channel.read()
        magic, _, major, minor, *_ = _HEADER.unpack_from(stream)
        return magic, major, minor, body_of(stream)[:_PREFIX]

    def wrap(self, *parts: bytes) -> bytes:
        """A stream of SEAL's, not compressed."""
        magic, major, minor, _ = self._frame
        size = _HEADER.size + sum(map(len, parts))
        return b"".join([_HEADER.pack(magic, _HEADER.size, major, minor, 0, 0, size), *parts])

    def load(self, c0: NDArray[np.uint64], rest: bytes) -> Any:
        """A SEAL ciphertext from c0 (N,) and either a seed or c1 as bytes."""
        seeded = len(rest) == SEED
        words = c0.tobytes() if seeded else c0.tobytes() + rest
        array = self.wrap(struct.pack("<Q", len(words) // 8), words)
        seed = self.wrap(b"\x01", rest) if seeded else b""  # 1: Blake2xb, SEAL's default generator
        found = self.api.Ciphertext()
        found.load(self.context, self.channel.write(self.wrap(self._frame[3], array, seed)))
        return found

    def parse(self, stream: bytes) -> tuple[NDArray[np.uint64], bytes]:
        """c0 (N,) and the seed, or c1 as bytes, of a stream that SEAL wrote.

        Raises:
            ConfigError: this SEAL writes another layout than the one known here.
        """
        n, body = self.params.degree, body_of(stream)
        start = _PREFIX + _HEADER.size + 8
        if len(body) == start + 16 * n:
            end = start + 8 * n
            rest = body[end:]
        elif len(body) == start + 8 * n + _HEADER.size + 1 + SEED and body[-SEED - 1] == 1:
            end, rest = start + 8 * n, body[-SEED:]
        else:
            raise ConfigError(f"a ciphertext of {len(body)} bytes is of no known layout", where="tenseal")
        return np.frombuffer(body[start:end], "<u8"), rest

    def expand(self, c0: NDArray[np.uint64], seeds: list[bytes], c1: NDArray[np.uint64] | None) -> Any:
        """One summed ciphertext in SEAL: the seeds grow, everything is added."""
        evaluator, total = self._evaluator, None
        zero = np.zeros_like(c0)
        for rest in [*seeds, *([c1.tobytes()] if c1 is not None else [])]:
            part = self.load(c0 if total is None else zero, rest)
            if total is None:
                total = part
            else:
                evaluator.add_inplace(total, part)
        return total

    @cached_property
    def _evaluator(self) -> Any:
        return self.api.Evaluator(self.context)

    def second(self, c0: NDArray[np.uint64], seeds: list[bytes], c1: NDArray[np.uint64] | None) -> NDArray[np.uint64]:
        """c1 of a sum, (N,), with all seeds grown."""
        self.expand(c0, seeds, c1).save(self.channel.write())
        return np.frombuffer(self.parse(self.channel.read())[1], "<u8")


class KeyHolder:
    """A scheme with its secret key: what every site of a job has, and the server never.

    Args:
        secret: 8 N bytes, as `new_secret` gives them.

    Raises:
        KeyRefused: the bytes are no key for these parameters.
    """

    def __init__(self, params: HEParams, secret: bytes, scheme: Scheme | None = None) -> None:
        self.params, self.scheme = params, scheme or Scheme(params)
        api, channel = self.scheme.api, self.scheme.channel
        if len(secret) != 8 * params.degree:
            raise KeyRefused(f"{len(secret)} bytes are no key of degree {params.degree}", where="secret")
        api.KeyGenerator(self.scheme.context).secret_key().save(channel.write())
        head = body_of(channel.read())[: -len(secret)]
        key = api.SecretKey()
        try:
            key.load(self.scheme.context, channel.write(self.scheme.wrap(head, secret)))
        except (RuntimeError, ValueError) as error:
            raise KeyRefused(f"SEAL does not take the key ({error})", where="secret") from None
        finally:
            channel.write()
        self._encryptor = api.Encryptor(self.scheme.context, key)
        self._decryptor = api.Decryptor(self.scheme.context, key)
        self._plain = api.Plaintext(params.degree)
        self._plain.save(channel.write())
        zeros = bytes(8 * params.degree)
        self._plain_head = self.scheme.wrap(body_of(channel.read())[:_PLAIN_PREFIX], zeros)[: -len(zeros)]

    @staticmethod
    def new_secret(params: HEParams, scheme: Scheme | None = None) -> bytes:
        """A fresh secret key: N coefficients of 8 bytes, from the operating system's randomness."""
        scheme = scheme or Scheme(params)
        scheme.api.KeyGenerator(scheme.context).secret_key().save(scheme.channel.write())
        secret = body_of(scheme.channel.read())[-8 * params.degree :]
        scheme.channel.write()
        return secret

    def encrypt(self, slots: Integers) -> Ciphertexts:
        """Slots (n,) below t as ceil(n / N) ciphertexts; the last is filled up with zeros."""
        n, channel = self.params.degree, self.scheme.channel
        plain = np.zeros((-(-slots.size // n), n), "<u8")
        plain.reshape(-1)[: slots.size] = slots
        c0, rest = np.empty(plain.shape, np.uint64), list[bytes]()
        for row, values in enumerate(plain):
            self._plain.load(self.scheme.context, channel.write(self._plain_head, values.data))
            self._encrypt(channel.path)
            c0[row], tail = self.scheme.parse(channel.read())
            rest.append(tail)
        if self.scheme.seeded:
            return Ciphertexts(c0, (np.frombuffer(b"".join(rest), np.uint8).reshape(-1, SEED),))
        return Ciphertexts(c0, (), np.frombuffer(b"".join(rest), "<u8").reshape(-1, n))

    def _encrypt(self, path: str) -> None:
        if self.scheme.seeded:
            self._encryptor.encrypt_symmetric(self._plain).save(path)
        else:
            full = self.scheme.api.Ciphertext()
            self._encryptor.encrypt_symmetric(self._plain, full)
            full.save(path)

    def decrypt(self, given: Ciphertexts) -> NDArray[np.uint64]:
        """The slots of m ciphertexts, (m * N,) uint64."""
        m, n = given.c0.shape
        out = np.zeros((m, n), np.uint64)
        for row in range(m):
            seeds = [s[row].tobytes() for s in given.seeds]
            total = self.scheme.expand(given.c0[row], seeds, None if given.c1 is None else given.c1[row])
            self._decryptor.decrypt(total, self._plain)
            self._plain.save(self.scheme.channel.write())
            found = np.frombuffer(body_of(self.scheme.channel.read()), "<u8", offset=_PLAIN_PREFIX)
            out[row, : found.size] = found  # SEAL leaves out zeros at the end
        return out.reshape(-1)


def capability() -> dict[str, str]:
    """What `polypfed doctor` prints: the size of uploads here, and where SEAL's bytes pass.

    Raises:
        MissingExtraError: tenseal or a zstd module is not installed.
    """
    params = HEParams("std", 2, 4)
    holder = KeyHolder(params, KeyHolder.new_secret(params))
    slots = np.arange(params.degree, dtype=np.uint64)
    exact = bool(np.array_equal(holder.decrypt(holder.encrypt(slots)), slots))
    uploads = "seeded" if holder.scheme.seeded else "whole: twice the bytes"
    return {"uploads": uploads, "channel": holder.scheme.channel.level, "self-test": "passed" if exact else "FAILED"}


def body_of(stream: bytes) -> bytes:
    """A SEAL stream without its header, decompressed.

    Raises:
        ConfigError: it is compressed in a way not known here.
    """
    _, size, _, _, mode, _, total = _HEADER.unpack_from(stream)
    body = stream[size:total]
    if mode == 0:
        return body
    if mode == 1:
        return zlib.decompress(body)
    if mode == 2:
        return _unzstd(body)
    raise ConfigError(f"compression {mode} of SEAL is unknown", where="tenseal")


def _unzstd(data: bytes) -> bytes:
    return bytes(_zstd().decompress(data))


@cache
def _zstd() -> Any:
    return require("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd", extra="he")
