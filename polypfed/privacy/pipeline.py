"""Stages put together: refused at construction, with the reason, where they would not keep what they promise."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np

from polypfed.core.model import Vector
from polypfed.core.seeds import generator
from polypfed.core.settings import whole
from polypfed.privacy.errors import IncompatiblePrivacy
from polypfed.privacy.params import HEParams
from polypfed.privacy.quantise import Codec, Encoded, Grid
from polypfed.privacy.slots import Slots
from polypfed.privacy.stage import (
    At,
    Clip,
    Encrypt,
    Kind,
    Mask,
    Noise,
    Quantise,
    RandomK,
    Stage,
    State,
    codec_for,
    slots_for,
)

Mode = Literal["plain", "dp", "he", "secagg", "hybrid"]
_ORDER: dict[Kind, int] = {"clip": 0, "noise": 1, "compress": 2, "mask": 3, "encrypt": 4}
S = TypeVar("S")


@dataclass(frozen=True)
class Pipeline:
    """A legal sequence of stages; made by `compose`.

    Attributes:
        stages: in order. sites: the most in one sum.
    """

    stages: tuple[Stage, ...]
    sites: int

    @property
    def mode(self) -> Mode:
        """The name that reports and commands use."""
        return mode_of({stage.kind for stage in self.stages})

    def find(self, kind: type[S]) -> S | None:
        """The first stage of a class."""
        return next((s for s in self.stages if isinstance(s, kind)), None)

    @property
    def sums(self) -> bool:
        """Has the server sums only?"""
        return any(s.sums for s in self.stages)

    @property
    def adds(self) -> bool:
        """Are updates integers that only their sum is used of? The sites then get that and make the step."""
        return self.find(Quantise) is not None

    @property
    def floats(self) -> tuple[Stage, ...]:
        """The stages before values become integers."""
        return tuple(s for s in self.stages if not isinstance(s, Quantise | Encrypt | Mask))

    def forward(self, vector: Vector, state: State, at: At) -> tuple[Vector, State]:
        """All float stages at the site, and their states after it under "0.residual", "1.residual", ..."""
        kept: dict[str, Vector] = {}
        for place, stage in enumerate(self.floats):
            own = {k.partition(".")[2]: v for k, v in state.items() if k.partition(".")[0] == str(place)}
            vector, after = stage.forward(vector, own, at)
            kept |= {f"{place}.{k}": v for k, v in after.items()}
        return vector, kept

    def backward(self, mean: Vector, at: At, length: int) -> Vector:
        """The float stages undone in reverse, where the plain mean is; (length,)."""
        lengths = self.lengths(length)
        for stage, size in zip(reversed(self.floats), reversed(lengths[:-1]), strict=True):
            mean = stage.backward(mean, at, size)
        return mean

    def lengths(self, length: int) -> list[int]:
        """Values in front of each float stage, and behind the last."""
        found = [length]
        for stage in self.floats:
            found.append(stage.size(found[-1]))
        return found

    @cached_property
    def layout(self) -> tuple[Slots, HEParams | None] | None:
        """Lanes and encryption parameters; None if nothing is quantised."""
        quantise = self.find(Quantise)
        return slots_for(quantise, self.find(Mask), self.find(Encrypt), self.sites) if quantise else None

    def codec(self, length: int, grid: Grid | None = None) -> Codec | None:
        """For what `forward` gives, (length,); None if nothing is quantised."""
        quantise = self.find(Quantise)
        return codec_for(quantise, self.layout[0], length, grid) if quantise and self.layout else None

    def encode(
        self, codec: Codec, vector: Vector, weight: int, state: State, kept: State, at: At
    ) -> tuple[Encoded, State]:
        """What `forward` gave as slots, and the state after the round.

        Args:
            state: before the round. kept: as `forward` returned it.
        """
        quantise, place = self.find(Quantise), self._sparse
        if quantise is None or not quantise.feedback:
            return codec.encode(vector, weight, self._draw(at)), kept
        residual = None if place is not None else state.get("rounding")
        out = codec.encode(vector, weight, self._draw(at), np.zeros_like(vector) if residual is None else residual)
        assert out.residual is not None
        if place is None:
            return out, {**kept, "rounding": out.residual}
        # The next round sends other indices: what rounding lost goes back to where it came from, unweighted.
        dense = kept[f"{place}.residual"].copy()
        factor = 1.0 if codec.cap is None else weight / codec.cap
        if factor:
            stage: Any = self.floats[place]
            dense[stage.indices(dense.size, at)] += out.residual / np.float32(factor)
        return out, {**kept, f"{place}.residual": dense}

    @property
    def _sparse(self) -> int | None:
        """The place of the last stage that leaves values out."""
        places = [i for i, s in enumerate(self.floats) if isinstance(s, RandomK) and s.linear]
        return places[-1] if places else None

    @staticmethod
    def _draw(at: At) -> np.random.Generator:
        return generator(at.seed, "rounding", at.round, at.site)

    def describe(self) -> list[dict[str, Any]]:
        """Names and settings, for run.json and the report."""
        return [{"stage": type(s).__name__, "kind": s.kind, **_settings(s)} for s in self.stages]


def _settings(stage: Stage) -> Mapping[str, Any]:
    fields = getattr(stage, "__dataclass_fields__", {})
    values = {name: getattr(stage, name) for name in fields}
    return {k: v for k, v in values.items() if v is None or isinstance(v, bool | int | float | str)}


def mode_of(kinds: Collection[str]) -> Mode:
    """What stages of these kinds are called together."""
    if "encrypt" in kinds:
        return "hybrid" if "mask" in kinds else "he"
    return "secagg" if "mask" in kinds else "dp" if "noise" in kinds else "plain"


def compose(stages: Sequence[Stage], *, sites: int, reducer: Any = None, weights: str = "uniform") -> Pipeline:
    """The stages as a pipeline, if they are legal.

    Args:
        sites: how many are registered; the most in one sum.
        reducer: `needs` is "sum" or "updates"; None needs sums.
        weights: "uniform" or "examples", of the reduction.

    Raises:
        IncompatiblePrivacy: what does not go together and why, with a way out.
    """
    whole("sites", sites, 1, 1 << 15)
    line = Pipeline(tuple(stages), sites)
    _order(line)
    _reducer(line, reducer)
    _noise(line, reducer, weights)
    _integers(line)
    if line.layout is not None:  # raises if there are no such parameters
        _threshold(line)
    return line


def _order(line: Pipeline) -> None:
    for before, after in zip(line.stages, line.stages[1:], strict=False):
        if _ORDER[before.kind] > _ORDER[after.kind]:
            reason = {
                "noise": "noise in front of a clip has no known sensitivity",
                "compress": "what is sent must be clipped and noised before values are left out or rounded",
            }.get(before.kind, "ciphertexts and masked integers can only be added")
            _refuse(f"{after.kind} behind {before.kind}: {reason}", "Order: clip, noise, compress, mask, encrypt")
        if before.kind == after.kind and (before.kind != "compress" or isinstance(before, Quantise)):
            _refuse(f"two stages of kind {before.kind}", "Leave one out")
    for stage in line.stages:
        if line.sites < stage.least:
            remedy = "Use he, which needs 2" if isinstance(stage, Mask) else "Add a site"
            why = (
                "from the sum of two, each knows the other's"
                if isinstance(stage, Mask)
                else "one site's sum is its own"
            )
            _refuse(f"{stage.kind} with {line.sites} sites, {stage.least} are needed: {why}", remedy)


def _reducer(line: Pipeline, reducer: Any) -> None:
    if line.adds and getattr(reducer, "needs", "sum") != "sum":
        name = type(reducer).__name__
        has = "the server has their sum only" if line.sums else "the sites get their sum and make the step"
        problem = f"{name} must see single updates, and under {_protocol(line)} {has}"
        _refuse(problem, f"Use Mean with {_protocol(line)}, or {name} with plain or dp and no Quantise")
    for stage in line.stages:
        if line.adds and not stage.linear:
            problem = f"{type(stage).__name__} with indices of each site's own does not add up under {_protocol(line)}"
            _refuse(problem, "Use common=True, or leave Quantise, encryption and masks out")


def _protocol(line: Pipeline) -> str:
    """What to call the rounds where updates are added as integers."""
    return line.mode if line.sums else "Quantise"


def _noise(line: Pipeline, reducer: Any, weights: str) -> None:
    noise, clip, quantise = line.find(Noise), line.find(Clip), line.find(Quantise)
    if clip and clip.adaptive and line.adds:
        problem = f"adaptive clipping under {_protocol(line)}: the count of clipped updates is not part of the sum"
        _refuse(problem, "Fix the norm")
    if clip and clip.adaptive and noise and noise.where == "site":
        _refuse(
            "adaptive clipping with noise at the site: the count of clipped updates would leave in clear",
            "Fix the norm",
        )
    if noise is None:
        return
    if clip is None or noise.clip != clip:
        _refuse("noise without the clip it is scaled to", "Put Clip in front and hand it to Noise(clip=...)")
    if weights != "uniform" or (quantise and quantise.cap is not None):
        _refuse("noise with weights by examples: the sensitivity would depend on the data", 'Use weights="uniform"')
    if noise.where == "server":
        remedy = 'Use Noise(where="site")'
        if line.find(Encrypt):
            _refuse("noise at the server, which under encryption has no sum to add it to", remedy)
        if any(s.kind == "compress" for s in line.stages):
            _refuse("noise at the server behind residuals or rounding: the clip no longer bounds what is sent", remedy)
        if getattr(reducer, "needs", "sum") != "sum":
            _refuse(f"noise at the server on {type(reducer).__name__}: its sensitivity is not the clip's", "Use Mean")


def _integers(line: Pipeline) -> None:
    if not line.sums:
        return
    before = [s for s in line.stages if not s.sums]
    if not before or not isinstance(before[-1], Quantise):
        _refuse(f"{line.mode} adds integers, and nothing quantises", "Put Quantise in front")


def _threshold(line: Pipeline) -> None:
    mask = line.find(Mask)
    if mask and not line.sites < 2 * mask.of(line.sites) <= 2 * line.sites:
        problem = f"a threshold of {mask.of(line.sites)} is no majority of {line.sites} sites"
        _refuse(problem, "Leave it out, or take two thirds")


def _refuse(problem: str, remedy: str) -> None:
    raise IncompatiblePrivacy(problem, where="stages", remedy=remedy)
