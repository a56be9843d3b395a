"""Which group goes to which site. Groups stay whole; every draw has its own generator."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_SCALE = 1_000_000  # targets are integers of this scale: ties then break alike on every machine


def generator(seed: int, label: str) -> np.random.Generator:
    """A generator of its own for each purpose: numbers drawn for one never shift those of another."""
    digest = hashlib.sha256(f"polypfed/{seed}/{label}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def allot(groups: Ints, targets: NDArray[np.float64], rng: np.random.Generator) -> list[int]:
    """Give each group to the part that lacks most of what the group holds, large groups first.

    Args:
        groups: (G, B) images per group and bucket.
        targets: (S, B) images each part should end with.
        rng: shuffles groups of equal size.

    Returns:
        The part, 0..S-1, of each group. With one bucket and equal targets, two parts differ by no more images than the
        largest group holds.
    """
    lack = np.rint(targets * _SCALE).astype(np.int64)
    order = rng.permutation(len(groups))
    order = order[np.argsort(-groups[order].sum(axis=1), kind="stable")]
    parts = [0] * len(groups)
    for g in order.tolist():
        fit, room = (lack * groups[g]).sum(axis=1), lack.sum(axis=1)
        part = max(range(len(lack)), key=lambda s: (fit[s], room[s], -s))
        lack[part] -= groups[g] * _SCALE
        parts[g] = part
    return parts


def equal(groups: Ints, sites: int, rng: np.random.Generator) -> list[int]:
    """Sites of equal size, content left to chance."""
    sizes = groups.sum(axis=1, keepdims=True)
    return allot(sizes, np.full((sites, 1), sizes.sum() / sites), rng)


def by_quantity(groups: Ints, shares: Sequence[float], rng: np.random.Generator) -> list[int]:
    """Sites of given shares, content left to chance."""
    sizes = groups.sum(axis=1, keepdims=True)
    return allot(sizes, np.array(shares)[:, None] / sum(shares) * sizes.sum(), rng)


def by_dirichlet(groups: Ints, sites: int, alpha: float, rng: np.random.Generator) -> list[int]:
    """Per bucket, the sites' shares follow Dirichlet(alpha): the smaller alpha, the more the sites differ."""
    counts = groups.sum(axis=0)
    shares = rng.dirichlet([alpha] * sites, size=len(counts))
    return allot(groups, (shares * counts[:, None]).T, rng)


def split_val(groups: Ints, val: float, rng: np.random.Generator) -> list[bool]:
    """True for groups that go to validation: `val` of each bucket and of all images, but never all groups or none."""
    shares = np.array([[1 - val], [val]])
    counted = np.concatenate([groups, groups.sum(axis=1, keepdims=True)], axis=1)  # small buckets round alike
    chosen = [part == 1 for part in allot(counted, shares * counted.sum(axis=0), rng)]
    if all(chosen) or not any(chosen):
        smallest = int(np.argmin(groups.sum(axis=1)))
        chosen[smallest] = not chosen[smallest]
    return chosen
