"""What sets one hospital apart: camera, light, mucosa, polyps and screen layout, fixed by seed and site name."""

import re
from dataclasses import dataclass
from functools import lru_cache

from polypfed.data.synth.seeds import number, rng

STRATA = 4
Triple = tuple[float, float, float]

VIEWS = ("octagon", "circle", "notched", "full")
TINTS: tuple[Triple, ...] = ((1.02, 0.62, 0.60), (1.25, 1.55, 1.60), (0.72, 0.56, 0.66), (1.22, 1.22, 0.78))
"""Polyp colour over mucosa colour (R, G, B, linear light): reddened, pale, dusky, yellowish."""
TEXTS = ("column", "corner", "none", "line")
INSETS: tuple[Triple | None, ...] = (None, (0.16, 0.72, 0.56), None, (0.30, 0.42, 0.80))


@dataclass(frozen=True)
class Style:
    """One site's look. Lengths are shares of the image width, colours RGB in [0, 1] unless said otherwise."""

    site: str
    seed: int
    view: str
    radius: float  # of the field of view, in half widths
    aspect: float  # height over width
    shift: float  # of the field of view to the right, in widths
    border: float  # grey level of the surround
    barrel: float  # lens distortion
    field: float  # slope seen at the rim of the view
    vignette: float
    tone: Triple  # mean colour the camera's exposure and white balance aim at
    contrast: float
    noise: float
    sharpen: float
    blur: float  # share of frames with motion blur
    glint: float  # median share of the view that glints
    glint_cells: int
    mucosa: Triple
    vessels: float
    mottle: float
    folds: float  # depth of the haustral folds in tube radii
    pitch: float  # mean distance of the folds in tube radii
    polyp_size: float  # median square root of the box area
    polyp_spread: float
    polyp_tint: Triple
    polyp_kinds: Triple  # shares: flat, sessile, stalked
    polyp_grain: float
    reach: float  # how far from the centre polyps are seen
    negatives: float  # share of sequences without a polyp
    several: float  # share of patients with more than one polyp
    clutter: tuple[float, float, float, float, float]  # bubbles, stool, instrument, wound, dye
    text: str
    inset: Triple | None


def slot(site: str) -> int:
    """The site's place in the stratified sequence: a trailing number of the name (from 1), else a hash of it."""
    found = re.search(r"(\d{1,6})$", site)
    return int(found[1]) - 1 if found else number("slot", site) % 10**6


class _Strata:
    """Latin hypercube: in each run of four numbered sites every setting visits each quarter of its range once."""

    def __init__(self, site: str, seed: int) -> None:
        block, place = divmod(slot(site), STRATA)
        self.place = place
        self.orders = rng("orders", seed, block)
        self.jitter = rng("jitter", seed, site)

    def quarter(self) -> int:
        return int(self.orders.permutation(STRATA)[self.place])

    def between(self, low: float, high: float) -> float:
        return round(low + (high - low) * (self.quarter() + float(self.jitter.uniform(0.1, 0.9))) / STRATA, 5)


@lru_cache(maxsize=64)
def style(site: str, seed: int = 0) -> Style:
    """The site's look. Sites numbered consecutively ("site-1", "site-2", ...) are spread over all ranges."""
    s = _Strata(site, seed)
    view = VIEWS[s.quarter()]
    red = s.between(0.53, 0.69)
    tone = (red, s.between(0.345, 0.45), s.between(0.245, 0.35))
    kinds = ((0.15, 0.7, 0.15), (0.05, 0.45, 0.5), (0.4, 0.5, 0.1), (0.1, 0.85, 0.05))[s.quarter()]
    overlay = s.quarter()
    shifts = {"octagon": 0.04, "circle": 0.10, "notched": 0.0, "full": 0.0}
    return Style(
        site=site, seed=seed, view=view, shift=shifts[view],
        radius=s.between(0.98, 1.12), aspect=s.between(0.76, 1.0), border=s.between(0.0, 0.065),
        barrel=s.between(0.12, 0.40), field=s.between(1.0, 1.45), vignette=s.between(0.1, 0.5),
        tone=tone, contrast=s.between(0.85, 1.25), noise=s.between(1.5, 5.0),
        sharpen=s.between(0.5, 1.3), blur=s.between(0.05, 0.3),
        glint=s.between(0.25, 1.3), glint_cells=int(s.between(26, 52)),
        mucosa=(0.74, s.between(0.22, 0.36), s.between(0.13, 0.27)),
        vessels=s.between(0.25, 0.95), mottle=s.between(0.07, 0.25), folds=s.between(0.2, 0.5),
        pitch=s.between(0.45, 1.0), polyp_size=s.between(0.22, 0.40), polyp_spread=s.between(0.25, 0.5),
        polyp_tint=TINTS[s.quarter()], polyp_kinds=kinds, polyp_grain=s.between(0.02, 0.15),
        reach=s.between(0.57, 0.88), negatives=s.between(0.02, 0.32), several=s.between(0.05, 0.4),
        clutter=(s.between(0.0, 0.4), s.between(0.0, 0.5), s.between(0.0, 0.3), s.between(0.0, 0.4),
                 s.between(-0.15, 0.25)),
        text=TEXTS[overlay], inset=INSETS[s.quarter()],
    )  # fmt: skip
