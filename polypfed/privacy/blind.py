"""A round under `he` or `hybrid`, from one site's vector to the mean that every key holder gets: the blocks in a row.

site     upload(vector)  -> bytes        forward stages, quantise, (mask,) encrypt, frames
server   accumulator(...).add(frame)     sums it cannot read
site     release(sum)    -> mean         decrypt, (unmask,) decode, backward stages; the grid of the next round
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import ConfigError
from polypfed.core.model import Vector
from polypfed.privacy.frames import Label, joined, split
from polypfed.privacy.he import Accumulator, open_sum, seal_update
from polypfed.privacy.keys import JobKey, job_id
from polypfed.privacy.params import HEParams
from polypfed.privacy.pipeline import Pipeline
from polypfed.privacy.quantise import Codec, Grid
from polypfed.privacy.roster import Identity, Roster
from polypfed.privacy.seal import KeyHolder
from polypfed.privacy.secagg import MaskingSite, Unmasking
from polypfed.privacy.stage import At, State


@dataclass(frozen=True)
class Sent:
    """An upload, (bytes,) uint8; what the site keeps if it counts; how many values the grid could not hold."""

    data: NDArray[np.uint8]
    state: State
    saturated: int


@dataclass(frozen=True)
class Released:
    """What every key holder knows after a round: equal bits at all of them.

    Attributes:
        mean: (length,) float32, for `Strategy.step`.
        weight, participants: examples in all, and whose updates they are.
        grid: of the next round.
    """

    mean: Vector
    weight: int
    participants: tuple[str, ...]
    grid: Grid


def codec_of(line: Pipeline, length: int, grid: Grid | None) -> Codec:
    """The codec of a round for vectors of `length`; its size is the number of slots.

    Raises:
        ConfigError: the stages do not quantise, or the grid is for another length.
    """
    sent = line.lengths(length)[-1]
    codec = line.codec(sent, grid)
    if codec is None or codec.grid.length != sent:
        raise ConfigError(
            f"there is no grid for {sent} values", where="stages", remedy="Put Quantise in front of Encrypt"
        )
    return codec


def label_for(run: str, round: int, attempt: int, key_id: bytes, params: HEParams, slots: int) -> Label:
    """What all frames of an attempt carry."""
    return Label(job_id(run), round, attempt, key_id, params.id, slots)


def accumulator(
    line: Pipeline, label: Label, roster: Roster, cohort: Mapping[str, object] | list[str], spool: Path | None = None
) -> Accumulator:
    """The server's sum for one attempt; only sites of the cohort may send.

    Raises:
        ConfigError: the stages do not encrypt.
    """
    if line.layout is None or line.layout[1] is None:
        raise ConfigError("nothing is encrypted", where="stages")
    verifiers = {roster.number(name): roster[name].verifier for name in cohort}
    return Accumulator(line.layout[1], label, verifiers, spool)


class BlindSite:
    """One site with the job key.

    Args:
        line: the pipeline; equal at all sites.
        length: of the vector before the stages.

    Raises:
        ConfigError: the key was made for other parameters than the stages ask for.
    """

    def __init__(self, line: Pipeline, run: str, identity: Identity, roster: Roster, key: JobKey, length: int) -> None:
        if line.layout is None or line.layout[1] != key.params:
            raise ConfigError("the key was made for other parameters", where=identity.name, remedy="Rotate the key")
        self.line, self.run, self.identity, self.roster, self.key = line, run, identity, roster, key
        self.length, self._holder = length, KeyHolder(key.params, key.secret)

    def label(self, round: int, attempt: int, slots: int) -> Label:
        """Of an attempt."""
        return label_for(self.run, round, attempt, self.key.id, self.key.params, slots)

    def upload(
        self,
        vector: Vector,
        weight: int,
        state: State,
        at: At,
        grid: Grid | None = None,
        attempt: int = 0,
        masks: tuple[MaskingSite, Mapping[str, bytes]] | None = None,
    ) -> Sent:
        """This site's update.

        Args:
            vector: (length,) float32. weight: examples.
            state: as `Sent.state` of the last round that counted; {} at first.
            grid: as `Released.grid` of the round before; None in the first.
            masks: for `hybrid`: this site's part in the attempt, and the shares its peers sealed for it.
        """
        codec = codec_of(self.line, self.length, grid)
        values, kept = self.line.forward(vector, state, at)
        encoded, after = self.line.encode(codec, values, weight, state, kept, at)
        slots = encoded.slots if masks is None else masks[0].mask(encoded.slots, masks[1])
        number = self.roster.number(self.identity.name)
        frames = seal_update(
            self._holder, slots, self.label(at.round, attempt, codec.size), number, self.identity.signer
        )
        return Sent(joined(frames), after, encoded.saturated)

    def release(
        self,
        data: NDArray[np.uint8],
        at: At,
        grid: Grid | None = None,
        attempt: int = 0,
        unmasking: Unmasking | None = None,
        minimum: int = 2,
    ) -> Released:
        """The mean in the server's sum, whether or not this site took part.

        Raises:
            FrameRefused: the sum is damaged, forged, of another round, of too few sites, or not what its manifest says.
        """
        codec = codec_of(self.line, self.length, grid)
        label = self.label(at.round, attempt, codec.size)
        found = open_sum(self._holder, split(data), label, self.roster.server.verifier, minimum)
        slots = found.slots if unmasking is None else unmasking.remove(found.slots)
        decoded = codec.decode(slots, expect=len(found.participants))
        where = replace(at, site="", count=decoded.count)
        mean = self.line.backward(decoded.mean, where, self.length)
        names = tuple(sorted(self.roster.names[n] for n in found.participants))
        return Released(mean, decoded.weight, names, codec.grid.following(decoded.peaks))
