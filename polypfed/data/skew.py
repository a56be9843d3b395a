"""How far the sites of a federation differ, as numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed.data.images import open_image
from polypfed.data.sample import Sample

SMALL, MEDIUM = 0.03, 0.15  # largest box, share of the image's area
BUCKETS = ("none", "one S", "one M", "one L", "more S", "more M", "more L")


def bucket(sample: Sample) -> int:
    """Index into `BUCKETS`: number of boxes (0 / 1 / 2 and more) by area of the largest (S < 3 %, M < 15 %, else L)."""
    if sample.negative:
        return 0
    largest = float(box_shares(sample).max())
    return 1 + 3 * (len(sample.boxes) > 1) + (largest >= SMALL) + (largest >= MEDIUM)


def box_shares(sample: Sample) -> NDArray[np.float64]:
    """(n,) float64: area of each box as a share of the image."""
    edges = sample.boxes.astype(np.float64)
    return np.asarray((edges[:, 2:] - edges[:, :2]).prod(axis=1) / (sample.size[0] * sample.size[1]))


def histogram(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """(7,) int64: images per bucket."""
    return np.bincount([bucket(sample) for sample in samples], minlength=len(BUCKETS)).astype(np.int64)


def divergence(p: NDArray[Any], q: NDArray[Any]) -> float:
    """Jensen-Shannon divergence of two histograms, base 2: 0 if equal in shape, 1 if they share no bucket.

    >>> divergence(np.array([3, 0]), np.array([0, 5]))
    1.0
    """
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    terms = [a[a > 0] * np.log2(a[a > 0] / middle[a > 0]) for a in (p, q)]
    return float(sum(term.sum() for term in terms) / 2)


def skew(sites: Mapping[str, Sequence[Sample]], *, appearance: bool = False) -> dict[str, Any]:
    """Skew figures per site and one number for the federation.

    Args:
        sites: samples per site, none empty.
        appearance: also compare mean colour and sharpness; decodes every image.

    Returns:
        `{"divergence": D, "sites": {name: {...}}}`. Per site: `divergence` of its bucket histogram to the pool's,
        `negatives` (share), `box_area` (median share of the image; null without boxes), `size` (images over the mean
        of the sites), `images`, `boxes`; with `appearance` also `colour` and `sharpness`, distances of the site's mean
        to the pool's in standard deviations of the pool. D is the mean divergence, weighted by images.
    """
    pooled = histogram([sample for samples in sites.values() for sample in samples])
    mean = float(pooled.sum()) / len(sites)
    rows = {name: _site(samples, pooled, mean) for name, samples in sites.items()}
    if appearance:
        for name, extra in _appearance(sites).items():
            rows[name].update(extra)
    total = sum(row["divergence"] * row["images"] for row in rows.values()) / float(pooled.sum())
    return {"divergence": round(total, 6), "sites": rows}


def _site(samples: Sequence[Sample], pooled: NDArray[np.int64], mean: float) -> dict[str, Any]:
    shares = np.concatenate([box_shares(sample) for sample in samples])
    return {
        "images": len(samples),
        "boxes": len(shares),
        "divergence": round(divergence(histogram(samples), pooled), 6),
        "negatives": round(sum(sample.negative for sample in samples) / len(samples), 6),
        "box_area": round(float(np.median(shares)), 6) if len(shares) else None,
        "size": round(len(samples) / mean, 6),
    }


def _appearance(sites: Mapping[str, Sequence[Sample]]) -> dict[str, dict[str, float]]:
    """Per site: distance of mean (R, G, B) and of log sharpness to the pool, in pooled standard deviations."""
    seen = {name: np.array([_look(sample) for sample in samples]) for name, samples in sites.items()}
    pool = np.concatenate(list(seen.values()))
    spread = np.maximum(pool.std(axis=0), 1e-9)
    far = {name: (looks.mean(axis=0) - pool.mean(axis=0)) / spread for name, looks in seen.items()}
    return {
        name: {"colour": round(float(np.linalg.norm(z[:3])), 6), "sharpness": round(float(abs(z[3])), 6)}
        for name, z in far.items()
    }


def _look(sample: Sample) -> list[float]:
    pixels = open_image(sample.image)
    grey = pixels.mean(axis=2)
    centre = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * centre
    sharpness = float(np.log1p(laplacian.var())) if laplacian.size else 0.0
    return [*pixels.reshape(-1, 3).mean(axis=0).tolist(), sharpness]
