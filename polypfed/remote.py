"""A study whose ends are on different machines: the server's federation and a site's client, from one study file."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from polypfed import config as configs
from polypfed.clients import DetectorClient
from polypfed.config import Config
from polypfed.core.reduce import Mean
from polypfed.core.robust import NormClip
from polypfed.data import Site
from polypfed.federation import Federation
from polypfed.run import clients_of
from polypfed.strategies.base import Strategy, Wrapper


def client(name: str, base: Path, study: str = "study.toml", data: str = "data") -> DetectorClient:
    """A site's detector client.

    Args:
        name: the site.
        base: folder of `site.toml`, which `study` and `data` are relative to.
        data: folder with train/ and val/, each with images/ and labels/.

    Raises:
        ConfigError, DataError: the study or the data cannot be used.
    """
    place = (base / data).resolve()
    config = _study(base / study, place)
    return clients_of(config, {name: Site(name, place)}, base / "state")[0]


def federation(
    sites: Sequence[str], base: Path, study: str = "study.toml", clip: bool = True
) -> tuple[Federation, int]:
    """The server's federation, with the initial model that every site's client would propose, and its rounds.

    Args:
        clip: where updates travel in clear and the study leaves the reducer alone, shorten them to their median norm
            and refuse those that point against all others (`NormClip`), so that no site counts for more than any other.

    Raises:
        ConfigError: the study cannot be used.
    """
    config = _study(base / study, base)
    proposing = clients_of(config, {sites[0]: Site(sites[0], base)}, None)[0]
    fed = replace(_federation(config, clip), initial=proposing.initial())
    return fed, config.federation.rounds


def planned(study: Path, *, clip: bool = True) -> Federation:
    """The federation that the server will run of a study, without a model: what a site's owner approves.

    Raises:
        ConfigError: the study cannot be used.
    """
    return _federation(_study(study, study.parent), clip)


def _federation(config: Config, clip: bool) -> Federation:
    fed = configs.federation(config, [])
    return replace(fed, strategy=clipped(fed.strategy)) if clip and not fed.stages else fed


def clipped(strategy: Strategy) -> Strategy:
    """The strategy with deltas shortened to their median norm, none of them against all others.

    It is as it was if it takes no other reducer, or has one that is not the plain mean.
    """
    if isinstance(strategy, Wrapper):
        return replace(strategy, inner=clipped(strategy.inner))
    reducer = strategy.reducer
    free = is_dataclass(strategy) and any(f.name == "reducer" for f in fields(strategy))
    if not free or type(reducer) is not Mean:
        return strategy
    rule = NormClip(weights=reducer.weights, refuse_opposed=True)
    return replace(strategy, reducer=rule)  # type: ignore[type-var]  # a dataclass, as seen


def _study(path: Path, data: Path) -> Config:
    """The study; its [data] says where a run on one machine finds all sites, which is no concern here."""
    override: dict[str, Any] = {"data": {"partition": str(data.resolve())}}
    return configs.load(path, override)
