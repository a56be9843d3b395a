"""What a site sends under stages: one flat vector, and what both ends derive from the settings to read it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from polypfed.core.errors import ConfigError
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.reduce import BUFFERS, Mean, Reducer
from polypfed.privacy.dp import AdaptiveNorm
from polypfed.privacy.errors import IncompatiblePrivacy
from polypfed.privacy.frames import Label
from polypfed.privacy.keys import job_id
from polypfed.privacy.params import HEParams
from polypfed.privacy.pipeline import Pipeline, compose
from polypfed.privacy.quantise import Codec, Grid
from polypfed.privacy.stage import Clip, Noise, Quantise, RandomK, Stage

_MOVED, _STATISTICS_MOVED = 0.08, 0.4
"""What a first round moves a value by: a weight by this share of the root mean square of all, a statistic of BatchNorm
by this share of its tensor's largest. Measured on YOLOv5n from COCO's weights, three epochs of AdamW on polyps at sites
with half as many examples as `Quantise.cap`."""


@dataclass(frozen=True)
class Plan:
    """The flat vector: the delta's trainable section, its buffers, then the strategy's extra vectors by name.

    Under noise the buffers are not sent: they are outputs of their own that no noise was added to.

    Attributes:
        spec: the layout of what travels; extra: names and lengths of what the strategy sends beside the delta.
        pipeline: the stages; uniform: all sites count the same.
    """

    spec: ModelSpec
    extra: Mapping[str, int]
    pipeline: Pipeline
    uniform: bool

    @classmethod
    def of(
        cls, spec: ModelSpec, extra: Mapping[str, int], reducer: Reducer, stages: Sequence[Stage], sites: int
    ) -> "Plan":
        """The plan, if stages, reducer and number of sites go together.

        Raises:
            IncompatiblePrivacy: they do not; with the reason and a way out.
        """
        weights = reducer.weights if isinstance(reducer, Mean) else "uniform"
        if not any(isinstance(stage, Noise) for stage in stages):
            stages = _with_buffers_whole(stages, spec, sum(extra.values()))
        pipeline = compose(stages, sites=sites, reducer=reducer, weights=str(weights))
        if pipeline.adds and not isinstance(weights, str):
            raise IncompatiblePrivacy(
                "weights by name cannot be used where integers are added", where="strategy.weights",
                remedy='Use Mean("examples") or Mean("uniform")',
            )  # fmt: skip
        quantise = pipeline.find(Quantise)
        if quantise and (quantise.cap is None) is not (weights == "uniform"):
            need = "Quantise(cap=...)" if weights == "examples" else "Quantise(cap=None)"
            raise IncompatiblePrivacy(f"a mean by {weights} needs {need}", where="stages", remedy=f"Use {need}")
        return cls(spec, dict(sorted(extra.items())), pipeline, weights == "uniform")

    @property
    def buffers(self) -> bool:
        """Are BatchNorm statistics sent?"""
        return self.pipeline.find(Noise) is None

    @property
    def length(self) -> int:
        """Values of the flat vector before any stage."""
        return (self.spec.size if self.buffers else self.spec.boundary) + sum(self.extra.values())

    @property
    def adaptive(self) -> AdaptiveNorm | None:
        """How the clipping norm moves, if it does; sites then say whether they were clipped."""
        clip = self.pipeline.find(Clip)
        return clip.adaptive if clip else None

    @cached_property
    def sent(self) -> int:
        """Values behind the last float stage."""
        return self.pipeline.lengths(self.length)[-1]

    def join(self, vectors: Mapping[str, Vector]) -> Vector:
        """The vectors of an update as one."""
        delta = vectors["delta"] if self.buffers else vectors["delta"][self.spec.trainable]
        return np.concatenate([delta, *(vectors[name] for name in self.extra)])

    def split(self, flat: Vector) -> dict[str, Vector]:
        """The inverse, with the delta's sections apart; buffers that were not sent are zero."""
        boundary = at = self.spec.boundary
        found = {"delta": flat[:boundary], BUFFERS: np.zeros(self.spec.size - boundary, np.float32)}
        if self.buffers:
            at = self.spec.size
            found[BUFFERS] = flat[boundary:at]
        for name, length in self.extra.items():
            found[name], at = flat[at : at + length], at + length
        return found

    @cached_property
    def _tensors(self) -> tuple[list[int], int]:
        """Sizes of the tensors that are sent, and how many of them are trainable."""
        parts = [p for p in self.spec.parts if p.stop > p.start]
        trainable = [p for p in parts if p.start < self.spec.boundary]
        return [p.stop - p.start for p in (parts if self.buffers else trainable)], len(trainable)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The sections of what is sent that have a bound of their own."""
        tensors, trainable = self._tensors
        if self.sent != self.length:  # values were left out, and what is left knows no tensors
            whole = tensors[trainable:]
            return (self.sent - sum(whole), *whole)
        extra = [tensors[:trainable] if n == self.spec.boundary else [n] for n in self.extra.values()]
        return tuple(tensors + [size for sizes in extra for size in sizes])

    def first_grid(self, x: Vector) -> Grid:
        """Bounds before any site has said how large its values are; vectors as long as the model's have the model's.

        With `Quantise.bound` that share of each tensor's largest weight. Without, the codec's room for what values are
        expected to be. Adaptive optimisers move all weights by about as much, however large those of a tensor are;
        BatchNorm's statistics move by a part of theirs, or by several times if the images are of another task.

        Raises:
            ConfigError: nothing is quantised.
        """
        quantise = self.pipeline.find(Quantise)
        if quantise is None:
            raise ConfigError("nothing is quantised", where="stages")
        usual = _rms(x)
        tensors, trainable = self._tensors
        moved, room = _MOVED * _rms(x[: self.spec.boundary]), self.codec().room
        bounds = []
        for i, piece in enumerate(np.split(x[: sum(tensors)], np.cumsum(tensors)[:-1])):
            largest = max(float(np.abs(piece).max()), usual)
            expected = moved if i < trainable else _STATISTICS_MOVED * largest
            given = None if quantise.bound is None else quantise.bound * largest
            bounds.append(given or expected * _first(room(piece.size)))
        if self.sent != self.length:
            return Grid((max(bounds[:trainable]), *bounds[trainable:]), self.sizes)
        for length in self.extra.values():
            bounds += bounds[:trainable] if length == self.spec.boundary else [1.0]
        return Grid(tuple(bounds), self.sizes)

    def codec(self, grid: Grid | None = None) -> Codec:
        """For this grid; without one only its size means something.

        Raises:
            ConfigError: nothing is quantised.
        """
        codec = self.pipeline.codec(self.sent, grid or Grid((1.0,) * len(self.sizes), self.sizes))
        if codec is None:
            raise ConfigError("nothing is quantised", where="stages")
        return codec

    @property
    def params(self) -> HEParams:
        """Of the ciphertexts.

        Raises:
            ConfigError: nothing is encrypted.
        """
        layout = self.pipeline.layout
        if layout is None or layout[1] is None:
            raise ConfigError("nothing is encrypted", where="stages")
        return layout[1]

    def label(self, run: str, number: int, attempt: int, key: bytes) -> Label:
        """What every frame of a round carries."""
        return Label(job_id(run), number, attempt, key, self.params.id, self.codec().size)


def _first(room: float) -> float:
    """How many times the expected a first round leaves room for. Half of `room` is for values larger than that; sites
    with a sixteenth of `Quantise.cap` examples send values that are smaller by as much, and need the levels.
    """
    return min(room, max(4.0, room / 4), 64.0)


def _rms(values: Vector) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) or 1.0


def _with_buffers_whole(stages: Sequence[Stage], spec: ModelSpec, extra: int) -> list[Stage]:
    """Stages that leave values out send BatchNorm's statistics all the same."""
    found, length, start, stop = list[Stage](), spec.size + extra, spec.boundary, spec.size
    for stage in stages:
        if isinstance(stage, RandomK):
            stage = replace(stage, dense=(start, stop))
            length = stage.size(length)
            start, stop = length - (stop - start), length
        found.append(stage)
    return found


def as_vectors(prefix: str, frames: Sequence[bytes]) -> dict[str, Any]:
    """Frames as named uint8 arrays, so that every backend carries them as it carries vectors."""
    return {f"{prefix}.{i:05d}": np.frombuffer(frame, np.uint8) for i, frame in enumerate(frames)}


def from_vectors(prefix: str, vectors: Mapping[str, Any]) -> list[bytes]:
    """The inverse of `as_vectors`, in order.

    Raises:
        ConfigError: an array under the prefix is not of bytes.
    """
    names = sorted(name for name in vectors if name.rpartition(".")[0] == prefix)
    for name in names:
        if getattr(vectors[name], "dtype", None) != np.uint8:
            raise ConfigError("does not hold bytes", where=name)
    return [vectors[name].tobytes() for name in names]
