"""Sending fewer values, the same ones at every site, so that sums stay sums.

What is not sent stays at the site as its residual e (error feedback): u = D + e, send u[I], e <- u without I.
I depends on public values only (the round, or the aggregate released before), never on one site's update.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import ConfigError, LayoutError
from polypfed.core.model import Vector
from polypfed.core.seeds import generator

Indices = NDArray[np.int64]
"""1-D, no index twice."""


def kept(length: int, share: float) -> int:
    """How many of `length` values are sent: at least one.

    Raises:
        ConfigError: share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"{share!r} is not above 0 and at most 1", where="share")
    return max(1, math.ceil(share * length)) if length else 0


def random_k(length: int, share: float, seed: int, round: int) -> Indices:
    """The same random indices at every site: drawn from the run's seed and the round."""
    count = kept(length, share)
    return np.sort(generator(seed, "random-k", round).permutation(length)[:count])


def top_k(reference: Vector, share: float, seed: int, round: int, explore: float = 0.25) -> Indices:
    """The indices where the last released aggregate was largest, and some random others.

    Args:
        reference: the aggregate released before, (n,); ties go to the lower index, so all sites agree.
        explore: this part of the indices is drawn at random from the rest. Without it an index once left out
            would have a zero aggregate and never come back.
    """
    if not 0 <= explore <= 1:
        raise ConfigError(f"{explore!r} is not from 0 to 1", where="explore")
    size = np.abs(reference)
    count = kept(size.size, share)
    best = min(count - int(explore * count), int(np.count_nonzero(size)))
    chosen = np.zeros(size.size, np.bool_)
    if best:
        threshold = np.partition(size, size.size - best)[size.size - best]
        chosen = size > threshold
        ties = np.flatnonzero(size == threshold)
        chosen[ties[: best - int(np.count_nonzero(chosen))]] = True
    others = np.flatnonzero(~chosen)
    chosen[generator(seed, "top-k", round).permutation(others)[: count - best]] = True
    return np.flatnonzero(chosen)


@dataclass(frozen=True)
class Sparse:
    """The values sent, (k,), and the residual that stays, (n,); both float32."""

    values: Vector
    residual: Vector


def gather(vector: Vector, residual: Vector | None, indices: Indices) -> Sparse:
    """u = vector + residual; u[indices] is sent, the rest stays.

    Raises:
        LayoutError: the residual has another shape, or an index lies outside.
    """
    if residual is not None and residual.shape != vector.shape:
        raise LayoutError(f"the residual has shape {residual.shape}, not {vector.shape}")
    if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= vector.size):
        raise LayoutError(f"an index lies outside of {vector.size} values")
    full = vector.copy() if residual is None else vector + residual
    values = full[indices]
    full[indices] = 0
    return Sparse(values, full)


def scatter(values: Vector, indices: Indices, length: int) -> Vector:
    """The dense vector, (length,), with zeros where nothing was sent."""
    if values.shape != indices.shape:
        raise LayoutError(f"{values.shape} values for {indices.shape} indices")
    out = np.zeros(length, np.float32)
    out[indices] = values
    return out
