"""A study whose ends are on different machines: the server's federation and a site's client, from one study file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from polypfed import config as configs
from polypfed.clients import DetectorClient
from polypfed.config import Config
from polypfed.data import Site
from polypfed.federation import Federation
from polypfed.run import clients_of


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


def federation(sites: Sequence[str], base: Path, study: str = "study.toml") -> tuple[Federation, int]:
    """The server's federation, with the initial model that every site's client would propose, and its rounds.

    Raises:
        ConfigError: the study cannot be used.
    """
    config = _study(base / study, base)
    proposing = clients_of(config, {sites[0]: Site(sites[0], base)}, None)[0]
    fed = replace(configs.federation(config, []), initial=proposing.initial())
    return fed, config.federation.rounds


def _study(path: Path, data: Path) -> Config:
    """The study; its [data] says where a run on one machine finds all sites, which is no concern here."""
    override: dict[str, Any] = {"data": {"partition": str(data)}}
    return configs.load(path, override)
