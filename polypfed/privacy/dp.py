"""Differential privacy: clip, Gaussian noise, and a clipping norm that follows a quantile.

    site     D' = D min(1, C / |D|),   b = 1 if |D| <= C else 0
    server   mean = (sum D' + N(0, (z_D C)^2)) / m,   bbar = (sum b + N(0, sigma_b^2)) / m
             then  C <- C exp(-eta (bbar - gamma))
    z_D = (z^-2 - (2 sigma_b)^-2)^(-1/2)

McMahan et al., Learning differentially private recurrent language models, 2018; Andrew et al., Differentially private
learning with adaptive clipping, 2021, Alg. 1. m is the number of sites planned, whoever comes. The unit of privacy is
one site's whole update (present, or a vector of zeros in its place); a patient's privacy needs DP inside the site.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import DataError
from polypfed.core.model import Vector
from polypfed.core.settings import positive, whole
from polypfed.privacy.errors import IncompatiblePrivacy
from polypfed.privacy.masks import Ring

Floats = NDArray[np.floating[Any]]
_BLOCK = 1 << 16
_WORDS = Ring(1 << 62)


@dataclass(frozen=True)
class Clipped:
    """Vectors whose common norm is at most C. `norm` is what it was; `unclipped` is b of the algorithm."""

    vectors: dict[str, Floats]
    norm: float
    unclipped: bool


def clip(vectors: Mapping[str, Floats], bound: float) -> Clipped:
    """One flat L2 norm over everything that is sent; 0-d and empty arrays count, zeros stay zeros. Dtypes stay.

    Raises:
        ConfigError: the bound is not above 0.
        DataError: a value is not finite.
    """
    positive(norm=bound)
    with np.errstate(over="ignore"):
        norm = math.sqrt(sum(float(np.sum(np.square(v, dtype=np.float64))) for v in vectors.values()))
    if not math.isfinite(norm):
        raise DataError("a value is not finite", where="delta")
    if norm <= bound:
        return Clipped(dict(vectors), norm, True)
    factor = bound / norm * (1 - 1e-6)  # rounding to float32 must not lift the norm above the bound
    scaled = {k: np.multiply(v, v.dtype.type(factor)).astype(v.dtype, copy=False) for k, v in vectors.items()}
    return Clipped(scaled, norm, False)


def standard_normal(size: int, generator: np.random.Generator | None = None) -> NDArray[np.float64]:
    """N(0, 1), (size,).

    Without a generator (it is for simulations only) the noise comes from AES-256-CTR under a key from the operating
    system. Each value is then half the sum of four normals, so that the gaps between floating-point numbers do not tell
    what was added (Holohan and Braghin, Secure random sampling in differential privacy, 2021).
    """
    if generator is not None:
        return generator.standard_normal(size)
    out = np.empty(size)
    for start in range(0, size, _BLOCK):
        part = out[start : start + _BLOCK]
        words = _WORDS.mask(os.urandom(32), 4 * part.size).reshape(4, -1) >> np.uint64(9)
        uniform = (words + 0.5) * 2.0**-53  # in (0, 1), 53 bits
        radius, angle = np.sqrt(-2 * np.log(uniform[:2])), 2 * np.pi * uniform[2:]
        part[:] = (radius * (np.cos(angle) + np.sin(angle))).sum(axis=0) / 2
    return out


def noised(vector: Vector, std: float, generator: np.random.Generator | None = None) -> Vector:
    """vector + N(0, std^2), float32."""
    return (vector + std * standard_normal(vector.size, generator)).astype(np.float32)


def noised_mean(
    mean: Vector,
    count: int,
    planned: int,
    multiplier: float,
    bound: float,
    generator: np.random.Generator | None = None,
) -> Vector:
    """The uniform mean of `count` clipped vectors as a sum over the `planned` sites, the sum with noise N(0, (z C)^2).

    Args:
        multiplier: z (z_D under adaptive clipping).
        bound: the C that clipped this round, not a later one.
    """
    scale = np.float32(count / planned)
    return noised(mean * scale, multiplier * bound / planned, generator)


@dataclass(frozen=True)
class AdaptiveNorm:
    """C follows the gamma-quantile of the update norms.

    Args:
        multiplier: z of the whole mechanism, which the ledger is charged with.
        planned: m.
        gamma: the share of updates that should not be clipped.
        eta: how fast C moves.
        initial: C of the first round.
        count_std: sigma_b, noise on the count; m / 20 if None.

    Raises:
        IncompatiblePrivacy: z >= 2 sigma_b: the noise on the count alone would use up the budget.
    """

    multiplier: float
    planned: int
    gamma: float = 0.5
    eta: float = 0.2
    initial: float = 0.1
    count_std: float | None = None

    def __post_init__(self) -> None:
        positive(multiplier=self.multiplier, eta=self.eta, initial=self.initial, gamma=self.gamma, count_std=self.sigma)
        whole("planned", self.planned, 1)
        if self.gamma >= 1 or self.multiplier >= 2 * self.sigma:
            raise IncompatiblePrivacy(
                f"a multiplier of {self.multiplier} needs {2 * self.sigma:.3g} > z and gamma < 1",
                where="adaptive clipping",
                remedy="Use a fixed norm, more sites, or DP inside each site",
            )

    @property
    def sigma(self) -> float:
        """sigma_b."""
        return self.planned / 20 if self.count_std is None else self.count_std

    @property
    def multiplier_of_sum(self) -> float:
        """z_D > z: the sum is noised more, because the count takes a part of the budget."""
        return float((self.multiplier**-2 - (2 * self.sigma) ** -2) ** -0.5)

    def moved(self, bound: float, unclipped: int, generator: np.random.Generator | None = None) -> float:
        """C of the next round from the number of UNCLIPPED updates under this C: few unclipped, C grows."""
        share = (unclipped + self.sigma * float(standard_normal(1, generator)[0])) / self.planned
        return bound * math.exp(-self.eta * (share - self.gamma))
