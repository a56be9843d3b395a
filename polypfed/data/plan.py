"""Which centres a site takes its samples from."""

from collections.abc import Collection, Mapping, Sequence

from polypfed.core.errors import ConfigError, DataError
from polypfed.data.assign import Ints, equal, generator

Centres = Sequence[str] | Mapping[str, Sequence[str]]
"""Centres of a site, or `{"train": [...], "val": [...]}` with one list of centres for each part."""

Place = tuple[str, str]
"""Site and split; split "" is still to be divided into train and val."""


def plan_sites(
    sites: Sequence[str] | Mapping[str, Centres], centres: Collection[str], held_out: Collection[str]
) -> dict[str, list[Place]]:
    """Centre -> the places that share it.

    Args:
        sites: per site its centres; or the centres that become a site each.
        centres: those that have samples.
        held_out: those that no site may use.

    Raises:
        ConfigError: a centre that does not exist, is held out, or is validated on here and trained on there.
    """
    if not isinstance(sites, Mapping):
        sites = {centre: [centre] for centre in sites}
    places: dict[str, list[Place]] = {}
    for site, wanted in sites.items():
        parts = wanted if isinstance(wanted, Mapping) else {"": wanted}
        if isinstance(wanted, Mapping) and sorted(wanted) != ["train", "val"]:
            raise ConfigError("needs exactly the lists 'train' and 'val'", where=f"site {site}")
        for split, names in parts.items():
            for centre in [names] if isinstance(names, str) else names:
                _refuse_unknown(centre, site, centres, held_out)
                places.setdefault(centre, []).append((site, split))
    for centre, shared in places.items():
        splits = {split for _, split in shared}
        if "val" in splits and splits != {"val"}:
            raise ConfigError(f"centre '{centre}' is validated on at one site and trained on at another", where="sites")
    return places


def _refuse_unknown(centre: str, site: str, centres: Collection[str], held_out: Collection[str]) -> None:
    if centre in held_out:
        raise ConfigError(f"centre '{centre}' is held out and cannot be in a site", where=f"site {site}")
    if centre not in centres:
        known = ", ".join(sorted(centres)) or "none"
        raise ConfigError(f"no centre '{centre}'", where=f"site {site}", remedy=f"The samples have: {known}")


def place_groups(
    centres: Sequence[frozenset[str]], histograms: Ints, places: Mapping[str, Sequence[Place]], seed: int
) -> list[Place | None]:
    """Place of each group, None where no site takes its centre; places that share a centre get equal parts.

    Args:
        centres: of each group.
        histograms: (G, B) images per group and bucket.
        places: centre -> the places that share it.

    Raises:
        DataError: a group has samples in centres of different sites.
    """
    choices = [_choices(names, places) for names in centres]
    result: list[Place | None] = [None] * len(choices)
    for shared in sorted(set(choices) - {()}):
        members = [g for g, options in enumerate(choices) if options == shared]
        parts = equal(histograms[members], len(shared), generator(seed, f"centre/{shared}"))
        for g, part in zip(members, parts, strict=True):
            result[g] = shared[part]
    return result


def _choices(names: frozenset[str], places: Mapping[str, Sequence[Place]]) -> tuple[Place, ...]:
    options = [set(places.get(centre, ())) for centre in names]
    common = set.intersection(*options)
    if not common and any(options):
        problem = f"the same group or frame occurs in centres of different sites: {', '.join(sorted(names))}"
        raise DataError(problem, remedy="Remove it from one, or put both centres into one site")
    return tuple(sorted(common))
