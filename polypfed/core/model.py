"""ModelSpec: the layout of a model, and the way between named arrays and one flat float32 vector."""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import LayoutError

Vector = NDArray[np.float32]
"""1-D, C-contiguous, float32."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Part:
    """One named array of a model, its place in the flat vector (`start` in values), and the group it belongs to."""

    name: str
    shape: tuple[int, ...]
    start: int
    group: str = ""

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)


@dataclass(frozen=True)
class ModelSpec:
    """Names, shapes and sections of a model; a flat vector holds the trainable part first, then the buffers.

    Attributes:
        parts: the trainable arrays, then the buffers, each in the order they were given.
        boundary: where the trainable section ends, T.
        local: integer and boolean arrays as (name, dtype, shape). They are compared once and never federated.

    Examples:
        >>> arrays = {"w": np.ones((2, 2)), "bn.mean": np.zeros(2), "bn.count": np.array(3)}
        >>> spec = ModelSpec.of(arrays, buffers=["bn.mean"])
        >>> spec.size, spec.trainable
        (6, slice(0, 4, None))
        >>> v = spec.pack(arrays)
        >>> spec.views(v)["w"][0, 0] = 7.0  # a view: it shares memory with v
        >>> v
        array([7., 1., 1., 1., 0., 0.], dtype=float32)
    """

    parts: tuple[Part, ...]
    boundary: int
    local: tuple[tuple[str, str, tuple[int, ...]], ...] = ()

    @classmethod
    def of(
        cls, arrays: Arrays, buffers: Iterable[str] = (), group: Callable[[str], str] = lambda name: ""
    ) -> "ModelSpec":
        """Read the layout off `arrays`.

        Args:
            buffers: the names of the float arrays that no optimiser moves (BatchNorm statistics).
            group: the part of the model an array belongs to, by its name: "backbone", "neck", "head".

        Raises:
            LayoutError: a buffer's name is unknown, an array is complex, or nothing is left to federate.
        """
        behind = set(buffers)
        if unknown := behind - set(arrays):
            raise LayoutError(f"no array is called {sorted(unknown)[0]!r}", where="buffers")
        floats = {n: a for n, a in arrays.items() if _is_float(n, a)}
        local = tuple((n, a.dtype.str, a.shape) for n, a in arrays.items() if n not in floats)
        parts: list[Part] = []
        start = boundary = 0
        for section in (False, True):
            for name, array in floats.items():
                if (name in behind) is section:
                    parts.append(Part(name, tuple(array.shape), start, group(name)))
                    start = parts[-1].stop
            if not section:
                boundary = start
        if not boundary:
            raise LayoutError("the model has no trainable float array")
        return cls(tuple(parts), boundary, local)

    @property
    def size(self) -> int:
        """P, the length of the flat vector."""
        return self.parts[-1].stop

    @property
    def trainable(self) -> slice:
        """The section that optimisers, control variates and noise touch: `slice(0, T)`."""
        return slice(0, self.boundary)

    @property
    def buffers(self) -> slice:
        """The section that is averaged under every strategy: `slice(T, P)`."""
        return slice(self.boundary, self.size)

    def moved_buffers(self, x: "Vector", delta: "Vector") -> "Vector":
        """The buffers of x moved by `delta`, (P - T,); variances stay at 0 or above, whatever rounding has made of it.

        >>> spec = ModelSpec.of({"w": np.zeros(1), "running_var": np.zeros(2)}, buffers=["running_var"])
        >>> spec.moved_buffers(np.float32([9, 1, 1]), np.float32([-0.5, -1.5]))
        array([0.5, 0. ], dtype=float32)
        """
        out = x[self.buffers] + delta
        for part in self.parts:
            if part.name.endswith("running_var"):
                own = out[part.start - self.boundary : part.stop - self.boundary]
                np.maximum(own, 0, out=own)
        return out

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical layout, hex: equal layouts, equal digests."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def pack(self, arrays: Arrays) -> Vector:
        """Copy `arrays` into a new flat vector of shape (P,).

        Raises:
            LayoutError: names or shapes differ from the spec.
        """
        known = {p.name for p in self.parts} | {name for name, _, _ in self.local}
        if wrong := known.symmetric_difference(arrays):
            name = sorted(wrong)[0]
            raise LayoutError("is missing" if name in known else "is not part of the model", where=name)
        for part in self.parts:
            if tuple(arrays[part.name].shape) != part.shape:
                raise LayoutError(f"has shape {arrays[part.name].shape}, not {part.shape}", where=part.name)
        out = np.empty(self.size, np.float32)  # and one call for all: of many small arrays the number costs
        flat = [np.asarray(arrays[part.name]).reshape(-1) for part in self.parts]
        return np.concatenate(flat, out=out, casting="unsafe")

    def views(self, vector: Vector) -> dict[str, NDArray[np.float32]]:
        """The named arrays inside `vector`, sharing its memory.

        Raises:
            LayoutError: the vector is not float32 of shape (P,).
        """
        if vector.dtype != np.float32 or vector.shape != (self.size,):
            raise LayoutError(f"the vector is {vector.dtype}{vector.shape}, not float32({self.size},)")
        return {p.name: vector[p.start : p.stop].reshape(p.shape) for p in self.parts}

    def without(self, names: Collection[str]) -> "ModelSpec":
        """The layout that is left when these arrays are taken out; the spec itself if there are none.

        Raises:
            LayoutError: nothing trainable is left.
        """
        if not names:
            return self
        parts: list[Part] = []
        boundary = 0
        for part in self.parts:
            if part.name not in names:
                parts.append(replace(part, start=parts[-1].stop if parts else 0))
                boundary = parts[-1].stop if part.start < self.boundary else boundary
        if not boundary:
            raise LayoutError("no trainable array is left to share")
        return ModelSpec(tuple(parts), boundary, self.local)

    def places(self, names: Collection[str]) -> NDArray[np.intp]:
        """Where the values of these arrays lie in the flat vector, ascending."""
        runs = [np.arange(p.start, p.stop) for p in self.parts if p.name in names]
        return np.concatenate(runs) if runs else np.zeros(0, np.intp)

    def to_json(self) -> dict[str, Any]:
        """The layout as plain JSON values."""
        return {
            "parts": [[p.name, list(p.shape), p.group] if p.group else [p.name, list(p.shape)] for p in self.parts],
            "boundary": self.boundary,
            "local": [[n, d, list(s)] for n, d, s in self.local],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelSpec":
        """The inverse of `to_json`.

        Raises:
            LayoutError: the value does not describe a layout.
        """
        try:
            parts: list[Part] = []
            for name, shape, *group in value["parts"]:
                start = parts[-1].stop if parts else 0
                parts.append(Part(str(name), tuple(map(int, shape)), start, *map(str, group[:1])))
            local = tuple((str(n), str(d), tuple(map(int, s))) for n, d, s in value["local"])
            spec = cls(tuple(parts), int(value["boundary"]), local)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise LayoutError(f"not a model layout ({error!r})") from None
        if not _possible(spec):
            raise LayoutError("not a model layout (a name occurs twice, a shape or the boundary is impossible)")
        return spec


def _possible(spec: ModelSpec) -> bool:
    names = [p.name for p in spec.parts] + [name for name, _, _ in spec.local]
    stops = {p.stop for p in spec.parts if p.stop > 0}
    return (
        len(set(names)) == len(names)
        and spec.boundary in stops
        and all(min(p.shape, default=0) >= 0 for p in spec.parts)
    )


def _is_float(name: str, array: NDArray[Any]) -> bool:
    if np.issubdtype(array.dtype, np.floating):
        return True
    if np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_:
        return False
    raise LayoutError(f"dtype {array.dtype} cannot be federated", where=name, remedy="Use a float dtype")


def fixed(vector: Vector) -> Vector:
    """The same vector, no longer writable: what is handed to clients and strategies is not theirs to change."""
    vector.setflags(write=False)
    return vector


def shared(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same values under names that cannot be changed; vectors as read-only views."""
    return MappingProxyType({k: fixed(v.view()) if isinstance(v, np.ndarray) else v for k, v in values.items()})


def nbytes(vectors: Mapping[str, Vector]) -> int:
    """The size of all vectors together."""
    return sum(v.nbytes for v in vectors.values())
