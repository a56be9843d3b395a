"""Homomorphic encryption: sites send encrypted slots, the server adds what it cannot read, key holders decrypt the sum.

    slots -> seeded encrypt -> frames                        site        `seal_update`
    frames -> checks -> add c0 modulo q, keep the seeds -> frames   server      `Accumulator`; no SEAL, no key
    frames -> checks -> grow the seeds -> decrypt -> slots          key holder  `open_sum`

A ciphertext is (c0, c1) with c1 = PRNG(seed), so an upload is c0 and a seed, and a sum is the sum of c0 and all seeds
(kind "relay": fewest bytes) or both polynomials (kind "sum": the server grows the seeds, cost for key holders is
independent of the number of sites). Sums are exact integers: equal bits in any order of arrival.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polypfed.privacy.errors import FrameRefused
from polypfed.privacy.frames import SERVER, Frame, Kind, Label, Signer, Verifier, expect, read
from polypfed.privacy.intake import Intake, Upload
from polypfed.privacy.params import HEParams
from polypfed.privacy.seal import SEED, Ciphertexts, KeyHolder, Scheme
from polypfed.privacy.slots import Integers
from polypfed.privacy.words import add_mod, pack, packed_bytes, unpack

CIPHERTEXTS = 64
"""Ciphertexts in a frame: about 0.9 MB."""


def blocks(params: HEParams, length: int) -> list[slice]:
    """The rows of ciphertexts that each frame holds, for so many slots."""
    rows = -(-length // params.degree)
    return [slice(start, min(start + CIPHERTEXTS, rows)) for start in range(0, rows, CIPHERTEXTS)]


def seal_update(holder: KeyHolder, slots: Integers, label: Label, site: int, signer: Signer) -> Iterator[bytes]:
    """One site's slots, (label.length,), as frames; one frame is in memory at a time.

    Args:
        site: this site's number in the roster.
    """
    params, parts = holder.params, blocks(holder.params, label.length)
    n, bits = params.degree, params.prime_bits
    for index, rows in enumerate(parts):
        made = holder.encrypt(slots[rows.start * n : rows.stop * n])
        body = b"".join([s.tobytes() for s in made.seeds] + [pack(made.c0, bits)])
        if made.c1 is not None:
            body += pack(made.c1, bits)
        yield Frame(label, "update", site, 1, index, len(parts), body, made.c1 is not None).seal(signer)


class Accumulator:
    """The server's sum of one round: verifies frames, and adds a site once all its frames are there, or not at all.

    It needs the public parameters only. Memory: 8 / lanes bytes per value for the sum and 64 bytes per site and
    ciphertext for the seeds; uploads under way wait in `spool`, or in memory without one.

    Args:
        label: what every frame must belong to.
        verifiers: the sites of the cohort by number.
        spool: an empty folder for uploads under way.
    """

    def __init__(
        self, params: HEParams, label: Label, verifiers: Mapping[int, Verifier], spool: Path | None = None
    ) -> None:
        self.params, self.label = params, label
        self._blocks = blocks(params, label.length)
        self._rows = self._blocks[-1].stop if self._blocks else 0
        self._c0 = np.zeros((self._rows, params.degree), np.uint64)
        self._c1: NDArray[np.uint64] | None = None
        self._seeds: list[NDArray[np.uint8]] = []
        self._intake = Intake(label, "update", verifiers, params.sites, len(self._blocks), self._check, spool)

    @property
    def participants(self) -> list[int]:
        """The sites counted so far, in order of arrival."""
        return self._intake.counted

    @property
    def nbytes(self) -> int:
        """Memory of the sum and of uploads that wait in memory."""
        c1 = 0 if self._c1 is None else self._c1.nbytes
        return self._c0.nbytes + c1 + sum(s.nbytes for s in self._seeds) + self._intake.nbytes

    def add(self, data: bytes) -> int | None:
        """Take one frame; the number of its site once that was its last one and the site has been counted.

        A refused frame changes nothing; `drop` the site if its upload is given up.

        Raises:
            FrameRefused: the frame is damaged, forged, of another job, key, round or parameters, comes twice or from a
                site that has been counted; or one site more than the parameters admit.
        """
        upload = self._intake.add(data)
        if upload is None:
            return None
        self._count(upload)
        return upload.site

    def drop(self, site: int) -> None:
        """Forget the frames of a site that will not be completed."""
        self._intake.drop(site)

    def _check(self, frame: Frame) -> None:
        rows = self._blocks[frame.index].stop - self._blocks[frame.index].start
        _lengths(self.params, frame.body, rows, 0 if frame.full else 1, frame.full)

    def _split(self, body: bytes, index: int, full: bool) -> Ciphertexts:
        rows = self._blocks[index].stop - self._blocks[index].start
        return _parse(self.params, body, rows, 0 if full else 1, full)

    def _count(self, upload: Upload) -> None:
        seeds = None if upload.full else np.empty((self._rows, SEED), np.uint8)
        if upload.full and self._c1 is None:
            self._c1 = np.zeros_like(self._c0)
        for index, rows in enumerate(self._blocks):
            part = self._split(upload.body(index), index, upload.full)
            add_mod(self._c0[rows], part.c0, self.params.prime)
            if seeds is not None:
                seeds[rows] = part.seeds[0]
            elif self._c1 is not None and part.c1 is not None:
                add_mod(self._c1[rows], part.c1, self.params.prime)
        if seeds is not None:
            self._seeds.append(seeds)
        self._intake.done(upload)

    def frames(self, signer: Signer, scheme: Scheme | None = None) -> Iterator[bytes]:
        """The sum as frames: a manifest of the participants, then the ciphertexts.

        Args:
            scheme: if given, seeds are grown here (kind "sum"), else they are passed on (kind "relay").

        Raises:
            FrameRefused: incomplete: no site has been counted.
        """
        if not self.participants:
            raise FrameRefused("incomplete", "no site has been counted")
        kind: Kind = "relay" if scheme is None else "sum"
        count, sites = len(self._blocks) + 1, len(self.participants)
        full = scheme is not None or self._c1 is not None
        manifest = struct.pack(f"<HH{sites}H", len(self._seeds), int(full), *self.participants)
        bodies = (self._body(rows, scheme) for rows in self._blocks)
        for index, body in enumerate(_chain(manifest, bodies)):
            yield Frame(self.label, kind, SERVER, sites, index, count, body, full).seal(signer)

    def _body(self, rows: slice, scheme: Scheme | None) -> bytes:
        bits, c0 = self.params.prime_bits, self._c0[rows]
        c1 = None if self._c1 is None else self._c1[rows]
        if scheme is None:
            seeds = [s[rows].tobytes() for s in self._seeds]
            return b"".join([*seeds, pack(c0, bits), *([] if c1 is None else [pack(c1, bits)])])
        grown = np.empty_like(c0)
        for row in range(len(c0)):
            seeds = [s[rows][row].tobytes() for s in self._seeds]
            grown[row] = scheme.second(c0[row], seeds, None if c1 is None else c1[row])
        return pack(c0, bits) + pack(grown, bits)


@dataclass(frozen=True)
class Sum:
    """The decrypted slots of a round, (label.length,) uint64, and the numbers of the sites in it."""

    slots: NDArray[np.uint64]
    participants: tuple[int, ...]


def open_sum(holder: KeyHolder, frames: Iterable[bytes], label: Label, server: Verifier, minimum: int = 2) -> Sum:
    """Decrypt a sum that the server made, frame by frame in order.

    Args:
        minimum: sums of fewer sites are not decrypted: they would show a single update.

    Raises:
        FrameRefused: a frame is damaged, forged, missing, out of order or of another job, key, round or parameters; the
            manifest names too few or too many sites.
    """
    params, parts = holder.params, blocks(holder.params, label.length)
    out = np.empty((parts[-1].stop if parts else 0) * params.degree, np.uint64)
    participants: tuple[int, ...] = ()
    seeded = taken = 0
    for data in frames:
        frame = read(data, {SERVER: server})
        expect(frame, label, ("sum", "relay"))
        if frame.count != len(parts) + 1 or frame.index != taken:
            raise FrameRefused(
                "frames", f"frame {frame.index} of {frame.count} in place of {taken} of {len(parts) + 1}"
            )
        if frame.index == 0:
            seeded, participants = _manifest(frame, params.sites, minimum)
        else:
            rows = parts[frame.index - 1]
            given = _parse(params, frame.body, rows.stop - rows.start, 0 if frame.kind == "sum" else seeded, frame.full)
            out[rows.start * params.degree : rows.stop * params.degree] = holder.decrypt(given)
        taken += 1
    if taken != len(parts) + 1:
        raise FrameRefused("frames", f"{taken} frames came of {len(parts) + 1}")
    return Sum(out[: label.length], participants)


def _manifest(frame: Frame, most: int, minimum: int) -> tuple[int, tuple[int, ...]]:
    if len(frame.body) != 4 + 2 * frame.sites:
        raise FrameRefused("body", "the manifest does not name as many sites as the header counts")
    seeded, _, *participants = struct.unpack(f"<HH{frame.sites}H", frame.body)
    if seeded > frame.sites or len(set(participants)) != frame.sites:
        raise FrameRefused("body", "the manifest names a site twice")
    if frame.sites > most:
        raise FrameRefused("too-many-sites", f"a sum of {frame.sites}, the parameters admit {most}")
    if frame.sites < minimum:
        raise FrameRefused("count", f"a sum of {frame.sites} is not decrypted, at least {minimum} are needed")
    return seeded, tuple(participants)


def _parse(params: HEParams, body: bytes, rows: int, seeded: int, full: bool) -> Ciphertexts:
    """Seeds, c0 and c1 of a frame's body, exact in length."""
    head, size = _lengths(params, body, rows, seeded, full)
    seeds = np.frombuffer(body, np.uint8, head).reshape(seeded, rows, SEED)
    layout = (rows, params.degree, params.prime_bits, params.prime)
    c0 = unpack(body[head : head + size], *layout)
    return Ciphertexts(c0, tuple(seeds), unpack(body[head + size :], *layout) if full else None)


def _lengths(params: HEParams, body: bytes, rows: int, seeded: int, full: bool) -> tuple[int, int]:
    """Bytes of the seeds and of one polynomial of all rows."""
    size, head = packed_bytes(rows, params.degree, params.prime_bits), seeded * rows * SEED
    if len(body) != head + size * (1 + full) or not (seeded or full):
        raise FrameRefused("body", f"{len(body)} bytes do not hold {rows} ciphertexts")
    return head, size


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
