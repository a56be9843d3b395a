"""Groups of samples into sites, and sites into train and val."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from polypfed.core.errors import ConfigError, DataError
from polypfed.data.assign import Ints, by_dirichlet, by_quantity, equal, generator, split_val
from polypfed.data.files import refuse_equal, safe_name
from polypfed.data.manifest import HELD_OUT
from polypfed.data.plan import Centres, Place, place_groups, plan_sites
from polypfed.data.sample import Sample
from polypfed.data.skew import histogram

MODES = ("by_centre", "iid", "quantity", "dirichlet")
_DRAWS = 100
_OPEN: Place = ("", "")  # a place for all that is still to be drawn
_APART: Place = ("", HELD_OUT)

Sites = int | Sequence[str] | Mapping[str, Centres] | None
Placed = list[Place | None]
Parts = dict[Place, list[Sample]]


@dataclass(frozen=True)
class Wish:
    """The parameters of `partition` that decide who gets what; they are described there."""

    mode: str
    sites: Sites
    val: float
    seed: int
    alpha: float
    shares: tuple[float, ...]
    held_out: tuple[str, ...]
    min_images: int
    min_boxes: int

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"'{self.mode}' is none of {', '.join(MODES)}", where="mode")
        if not 0 < self.val < 1:
            raise ConfigError(f"{self.val} is not between 0 and 1", where="val")
        if not self.alpha > 0 or any(not share > 0 for share in self.shares):
            raise ConfigError("alpha and shares must be positive", where="alpha, shares")


def divide(groups: Sequence[Sequence[Sample]], wish: Wish) -> Parts:
    """Samples of each (site, "train" | "val"), and of ("", "test") if centres are held out.

    Raises:
        ConfigError: parameters that contradict each other or the samples.
        DataError: a group in centres of different sites, or a site that stays too small.
    """
    centres = {sample.centre for group in groups for sample in group}
    for centre in set(wish.held_out) - centres:
        raise ConfigError(f"no centre '{centre}'", where="held_out", remedy=f"The samples have: {sorted(centres)}")
    names, places = _places(wish, centres)
    places |= {centre: [_APART] for centre in wish.held_out}
    histograms = np.array([histogram(group) for group in groups])
    fixed = place_groups([frozenset(s.centre for s in g) for g in groups], histograms, places, wish.seed)
    best: Parts = {}
    for attempt in range(_DRAWS):
        drawn = _draw(fixed, histograms, names, wish, attempt)
        parts = _gather(groups, _split(drawn, histograms, names, wish))
        if not best or _smallest(parts, names)[0] > _smallest(best, names)[0]:
            best = parts
        if _OPEN not in fixed or not _short(best, names, wish):
            break
    if short := _short(best, names, wish):
        raise DataError(short, remedy="Use fewer sites, a larger alpha, or lower min_images or min_boxes")
    return best


def _places(wish: Wish, centres: set[str]) -> tuple[list[str], dict[str, list[Place]]]:
    """Names of the sites, and the places that share each centre."""
    if wish.mode != "by_centre":
        return _names(wish), {centre: [_OPEN] for centre in centres}
    if isinstance(wish.sites, int):
        raise ConfigError("by_centre takes sites by name, not a number", where="sites")
    sites = wish.sites
    if sites is None:
        sites = {safe_name(centre or "no centre"): [centre] for centre in sorted(centres - set(wish.held_out))}
    places = plan_sites(sites, centres, wish.held_out)
    return _checked(list(sites)), places


def _names(wish: Wish) -> list[str]:
    if isinstance(wish.sites, Mapping) or wish.sites is None or isinstance(wish.sites, str):
        raise ConfigError(f"mode {wish.mode} takes a number of sites or a list of names", where="sites")
    count = wish.sites if isinstance(wish.sites, int) else len(wish.sites)
    if wish.mode == "quantity" and len(wish.shares) not in (0, count):
        raise ConfigError(f"{len(wish.shares)} shares for {count} sites", where="shares")
    width = len(str(count))
    return _checked([f"site-{i:0{width}}" for i in range(1, count + 1)] if isinstance(wish.sites, int) else wish.sites)


def _checked(names: Sequence[str]) -> list[str]:
    for name in names:
        if name.casefold() == HELD_OUT:
            raise ConfigError(f"a site may not be called '{HELD_OUT}'", where="sites")
        if safe_name(name) != name:
            remedy = f"Use '{safe_name(name)}'"
            raise ConfigError(f"'{name}' is not usable as a site's name", where="sites", remedy=remedy)
    if not names:
        raise ConfigError("no site is asked for", where="sites")
    refuse_equal(names, "sites")
    return sorted(names)


def _draw(fixed: Placed, histograms: Ints, names: list[str], wish: Wish, attempt: int) -> Placed:
    """Give the groups that are still open to sites."""
    members = [g for g, place in enumerate(fixed) if place == _OPEN]
    if not members:
        return fixed
    rng, chosen = generator(wish.seed, f"sites/{attempt}"), histograms[members]
    if wish.mode == "iid":
        sites = equal(chosen, len(names), rng)
    elif wish.mode == "quantity":
        sites = by_quantity(chosen, wish.shares or rng.dirichlet([wish.alpha] * len(names)).tolist(), rng)
    else:
        sites = by_dirichlet(chosen, len(names), wish.alpha, rng)
    drawn = dict(zip(members, sites, strict=True))
    return [(names[drawn[g]], "") if g in drawn else place for g, place in enumerate(fixed)]


def _split(places: Placed, histograms: Ints, names: list[str], wish: Wish) -> Placed:
    """Divide the places whose split is still open into train and val."""
    result = list(places)
    for name in names:
        members = [g for g, place in enumerate(places) if place == (name, "")]
        if members:
            chosen = split_val(histograms[members], wish.val, generator(wish.seed, f"val/{name}"))
            for g, val in zip(members, chosen, strict=True):
                result[g] = (name, "val" if val else "train")
    return result


def _gather(groups: Sequence[Sequence[Sample]], places: Placed) -> Parts:
    parts: Parts = {}
    for group, place in zip(groups, places, strict=True):
        if place:
            parts.setdefault(place, []).extend(group)
    return {place: sorted(parts[place], key=lambda sample: sample.id) for place in sorted(parts)}


def _smallest(parts: Parts, names: list[str]) -> tuple[int, int, str]:
    """Images, boxes and name of the smallest site; no images if train or val is empty."""
    counts = []
    for name in names:
        both = [parts.get((name, split), []) for split in ("train", "val")]
        images = sum(map(len, both)) if all(both) else 0
        counts.append((images, sum(len(s.boxes) for part in both for s in part), name))
    return min(counts)


def _short(parts: Parts, names: list[str], wish: Wish) -> str:
    """What is wrong with the sites' sizes, or ""."""
    for name in names:
        images, boxes, _ = _smallest(parts, [name])
        if images == 0:
            return f"site '{name}' has no images for train or val: it has too few groups"
        if images < wish.min_images or boxes < wish.min_boxes:
            return f"site '{name}' has {images} images and {boxes} boxes, wanted {wish.min_images} and {wish.min_boxes}"
    return ""
