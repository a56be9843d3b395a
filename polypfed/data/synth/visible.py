"""Which polyps are seen well enough to be drawn, and the boxes around what is seen."""

from collections.abc import Sequence

import numpy as np

from polypfed.data.synth.camera import Camera
from polypfed.data.synth.polyp import Patch
from polypfed.data.synth.seeds import Mask

LEAST_SHARE = 1 / 3
LEAST_PIXELS, LEAST_WIDTH = 5, 0.05
"""A visible part must be this many pixels and this share of the picture's width, across and down."""


def settle(cam: Camera, found: Sequence[Patch], free: Mask) -> tuple[list[Patch], list[Mask]]:
    """The patches to draw and what is seen of each: under a third visible means not drawn at all."""
    kept = list(found)
    while True:
        seen = _seen(cam, kept, free)
        shares = [int(m.sum()) / patch.whole for m, patch in zip(seen, kept, strict=True)]
        poor = [k for k, share in enumerate(shares) if share < LEAST_SHARE or not _large(seen[k])]
        if not poor:
            return kept, seen
        del kept[min(poor, key=lambda k: shares[k])]


def _large(mask: Mask) -> bool:
    x1, y1, x2, y2 = box(mask)
    return bool(min(x2 - x1, y2 - y1) >= max(LEAST_PIXELS, LEAST_WIDTH * mask.shape[1]))


def _seen(cam: Camera, found: Sequence[Patch], free: Mask) -> list[Mask]:
    owner = np.zeros((cam.height, cam.width), np.uint8)
    nearest = np.full((cam.height, cam.width), np.inf, np.float32)
    for k, patch in enumerate(found, 1):
        where = patch.rows, patch.columns
        wins = patch.front & (patch.depth < nearest[where])
        owner[where][wins] = k
        nearest[where][wins] = patch.depth[wins]
    return [(owner == k) & free for k in range(1, len(found) + 1)]


def box(mask: Mask) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 around the true pixels, ends exclusive; zeros if there are none."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
