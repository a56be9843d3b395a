"""Frames that belong together: same patient or sequence as far as known, else near-duplicates."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from polypfed.data.files import Progress
from polypfed.data.images import thumbnail
from polypfed.data.sample import Sample

_SIDE = 32
_BLOCK = 1024


def near_duplicates(
    samples: Sequence[Sample], threshold: float = 0.97, *, progress: Progress | None = None
) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of samples that show almost the same frame.

    Two frames are twins if the correlation of their 32 x 32 grey thumbnails, mean removed, exceeds `threshold`. All
    pairs are compared, as products of blocks of 1024 thumbnails. A frame of one flat colour has no twin.

    Raises:
        DataError: an image cannot be decoded.
    """
    thumbs = np.empty((len(samples), _SIDE * _SIDE), np.float32)
    for number, sample in enumerate(samples):
        thumbs[number] = _normal(thumbnail(sample.image, _SIDE))
        if progress:
            progress(number + 1, len(samples))
    pairs: list[tuple[int, int]] = []
    for top in range(0, len(thumbs), _BLOCK):
        for left in range(top, len(thumbs), _BLOCK):
            close = thumbs[top : top + _BLOCK] @ thumbs[left : left + _BLOCK].T > threshold
            rows, columns = np.nonzero(close)
            found = zip((rows + top).tolist(), (columns + left).tolist(), strict=True)
            pairs += [(i, j) for i, j in found if i < j]
    return pairs


def _normal(thumb: NDArray[np.uint8]) -> NDArray[np.float32]:
    flat = thumb.astype(np.float32).ravel()
    flat -= flat.mean()
    length = float(np.linalg.norm(flat))
    return flat / length if length > 1 else np.zeros_like(flat)


def group_samples(
    samples: Sequence[Sample], *, near: bool = True, threshold: float = 0.97, progress: Progress | None = None
) -> list[list[int]]:
    """Indices of `samples`, each in exactly one group; groups and their members in ascending order.

    Samples of one source, centre and declared group go together. Those without a declared group are joined with their
    near-duplicates, whatever centre these come from, or stay single if `near` is false.
    """
    union = UnionFind(len(samples))
    first: dict[tuple[str, str, str], int] = {}
    for index, sample in enumerate(samples):
        if sample.group:
            union.join(first.setdefault((sample.source, sample.centre, sample.group), index), index)
    loose = [index for index, sample in enumerate(samples) if not sample.group]
    if near:
        for i, j in near_duplicates([samples[k] for k in loose], threshold, progress=progress):
            union.join(loose[i], loose[j])
    return union.groups()


class UnionFind:
    """Disjoint sets of 0..n-1; the smallest member stands for its set."""

    def __init__(self, n: int) -> None:
        self.parent = list(range(n))

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = i = self.parent[self.parent[i]]
        return i

    def join(self, i: int, j: int) -> None:
        i, j = sorted((self.find(i), self.find(j)))
        self.parent[j] = i

    def groups(self) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for i in range(len(self.parent)):
            found.setdefault(self.find(i), []).append(i)
        return list(found.values())
