"""The settings of a run under encryption, and what both halves of it derive from them: layout, codec and labels."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from polypfed.core.errors import ConfigError
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.reduce import BUFFERS, Mean, Reducer
from polypfed.core.settings import positive, whole
from polypfed.privacy.errors import IncompatiblePrivacy
from polypfed.privacy.frames import Label
from polypfed.privacy.keys import job_id
from polypfed.privacy.params import HEParams, Profile
from polypfed.privacy.quantise import Codec, Grid


@dataclass(frozen=True, kw_only=True)
class HE:
    """Encryption: the server adds what it cannot read; the sites decrypt the sum and run the strategy's step.

    Args:
        bits: precision of a value at least; the fewest bytes that give it are chosen.
        profile: "std" (classical 128 bit), "pq128" (post-quantum 128) or "tc256" (classical 256).
        bound: values of the first round beyond this share of a tensor's largest weight are cut off and sent later;
            the bounds of later rounds follow the decrypted means.
        cap: the most examples a site may have; near the largest number wastes least precision in round 1.
        minimum: a sum of fewer sites is not decrypted, as it would show too much of each.
        snapshot: every so many rounds one site hands in the model, sealed for the others, for those who come late.

    Raises:
        ConfigError: a setting is out of range.
    """

    bits: float = 8.0
    profile: Profile = "std"
    bound: float = 0.02
    cap: int = 4096
    minimum: int = 2
    snapshot: int = 10

    def __post_init__(self) -> None:
        positive(bits=self.bits, bound=self.bound)
        whole("cap", self.cap, 1, 1 << 40)
        whole("minimum", self.minimum, 2)
        whole("snapshot", self.snapshot, 1)
        HEParams.for_sites(2, bits=self.bits, profile=self.profile)

    def params(self, sites: int) -> HEParams:
        """For so many registered sites.

        Raises:
            IncompatiblePrivacy: there is one site only. ConfigError: so many bits do not fit so many sites.
        """
        if sites < 2:
            raise IncompatiblePrivacy(
                "a sum over one site hides nothing", where="privacy", remedy="Encryption needs at least 2 sites"
            )
        return HEParams.for_sites(sites, bits=self.bits, profile=self.profile)

    def describe(self) -> dict[str, Any]:
        """The settings as JSON values; `HE(**...)` without the name gives them back."""
        return {"name": "he", **asdict(self)}

    @classmethod
    def build(cls, description: Mapping[str, Any]) -> "HE":
        """The inverse of `describe`."""
        return cls(**{k: v for k, v in description.items() if k != "name"})


def check_reducer(reducer: Reducer) -> None:
    """Refuse what cannot be had from an encrypted sum.

    Raises:
        IncompatiblePrivacy: with the reason and a way out.
    """
    if reducer.needs != "sum":
        raise IncompatiblePrivacy(
            f"{type(reducer).__name__} must see single updates, which encryption hides",
            where="strategy.reducer",
            remedy="Use Mean, or run without encryption",
        )
    if not isinstance(reducer, Mean) or isinstance(reducer.weights, Mapping):
        raise IncompatiblePrivacy(
            "weights by name cannot be used on encrypted sums",
            where="strategy.reducer",
            remedy='Use Mean("examples") or Mean("uniform")',
        )


@dataclass(frozen=True)
class Plan:
    """What a site sends in one flat vector: the delta's two sections, then the strategy's extra vectors by name."""

    spec: ModelSpec
    lengths: Mapping[str, int]
    settings: HE
    params: HEParams
    uniform: bool

    @classmethod
    def of(cls, spec: ModelSpec, extra: Mapping[str, int], reducer: Reducer, settings: HE, params: HEParams) -> "Plan":
        """For a model with layout `spec` and a strategy that sends `extra` beside the delta.

        Raises:
            IncompatiblePrivacy: the reducer cannot be had from an encrypted sum.
        """
        check_reducer(reducer)
        assert isinstance(reducer, Mean)
        return cls(spec, dict(sorted(extra.items())), settings, params, reducer.weights == "uniform")

    @property
    def length(self) -> int:
        """Values of the flat vector."""
        return self.spec.size + sum(self.lengths.values())

    def join(self, vectors: Mapping[str, Vector]) -> Vector:
        """The vectors of an update as one."""
        return np.concatenate([vectors["delta"], *(vectors[name] for name in self.lengths)])

    def split(self, flat: Vector) -> dict[str, Vector]:
        """The inverse, with the delta's sections apart."""
        boundary, at = self.spec.boundary, self.spec.size
        found = {"delta": flat[:boundary], BUFFERS: flat[boundary:at]}
        for name, length in self.lengths.items():
            found[name], at = flat[at : at + length], at + length
        return found

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sections of the flat vector that have a bound of their own: tensors, and what else is sent."""
        delta = [part.stop - part.start for part in self.spec.parts if part.stop > part.start]
        extra = [self._trainable(delta) if n == self.spec.boundary else [n] for n in self.lengths.values()]
        return tuple(delta + [size for sizes in extra for size in sizes])

    def _trainable(self, delta: list[int]) -> list[int]:
        return delta[: sum(part.stop > part.start and part.start < self.spec.boundary for part in self.spec.parts)]

    def first_grid(self, x: Vector) -> Grid:
        """Bounds in proportion to the weights of each tensor; vectors as long as the model's have the model's."""
        delta = [part.stop - part.start for part in self.spec.parts if part.stop > part.start]
        floor = float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) or 1.0
        tensors = np.split(x, np.cumsum(delta)[:-1])
        bounds = [self.settings.bound * max(float(np.abs(t).max()), floor) for t in tensors]
        for length in self.lengths.values():
            bounds += bounds[: len(self._trainable(delta))] if length == self.spec.boundary else [1.0]
        return Grid(tuple(bounds), self.sizes)

    def codec(self, grid: Grid) -> Codec:
        """For this grid."""
        return Codec(self.params.slots, grid, None if self.uniform else self.settings.cap)

    def label(self, run: str, number: int, attempt: int, key: bytes) -> Label:
        """What every frame of a round carries."""
        length = self.codec(Grid((1.0,) * len(self.sizes), self.sizes)).size
        return Label(job_id(run), number, attempt, key, self.params.id, length)


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
