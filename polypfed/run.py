"""A run from its config: data, sites, federation, what it is compared with, and the samples for the report."""

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from polypfed import baselines
from polypfed.clients import DetectorClient
from polypfed.clients.examples import write_samples
from polypfed.clients.frames import Augment
from polypfed.clients.states import States
from polypfed.config import Config, Data, backend, describe, federation
from polypfed.core import checkpoint as checkpoints
from polypfed.core.errors import ConfigError
from polypfed.core.files import write_atomic
from polypfed.core.history import History
from polypfed.core.model import Vector
from polypfed.core.pack import unpack_inner
from polypfed.core.rundir import load_model
from polypfed.core.settings import flat
from polypfed.data import Site, open_partition, partition, read_yolo
from polypfed.data.synth import synth
from polypfed.federation import Listener, recorded
from polypfed.select import All
from polypfed.select.config import from_config
from polypfed.strategies.registry import Registry
from polypfed.track import TrackSettings

Progress = Callable[[int, int], None]


def sites_of(config: Config, folder: Path, progress: Progress | None = None) -> dict[str, Site]:
    """The sites' data: opened where it lies, or made once below `folder`/data.

    Raises:
        DataError, ConfigError: the data cannot be used.
    """
    data, made = config.data, folder / "data"
    if data.partition is not None:
        return open_partition(Path(str(data.partition)))
    if not made.exists() and data.synth is not None:
        synth(made, **asdict(data.synth), progress=progress)
    elif not made.exists():
        _divide(data, Path(str(data.root)), made, progress)
    return open_partition(made)


def _divide(data: Data, root: Path, target: Path, progress: Progress | None) -> None:
    samples = [
        sample
        for source in data.sources or _folders(root)
        for sample in read_yolo(root / source, centre=source, source=source)
    ]
    partition(
        samples,
        target,
        data.mode,
        data.sites,
        data.val,
        data.seed,
        alpha=data.alpha,
        shares=data.shares,
        held_out=data.held_out,
        min_images=data.min_images,
        progress=progress,
    )


def _folders(root: Path) -> list[str]:
    found = sorted(p.name for p in root.iterdir() if (p / "images").is_dir())
    if not found:
        raise ConfigError("no folder in it holds images/", where=root, remedy="Name the folders in data.sources")
    return found


def clients_of(config: Config, sites: dict[str, Site], folder: Path | None) -> list[DetectorClient]:
    """One detector client per site; without a folder it trains on all images and records no decisions."""
    build = _builder(config)
    return [
        build(
            name=site.name,
            train=site.train,
            val=site.val,
            selector=from_config(config.select) if folder else All(),
            directory=folder / "sites" / site.name if folder else None,
        )
        for site in sites.values()
    ]


def _builder(config: Config) -> Callable[..., DetectorClient]:
    model = asdict(config.model)
    model["imgsz"] = model.pop("image_size")
    return partial(DetectorClient, **model, **asdict(config.train), augment=Augment(**asdict(config.augment)))


def federate(
    config: Config,
    sites: dict[str, Site],
    folder: Path,
    *,
    resume: bool = False,
    listen: Listener | None = None,
    name: str = "",
) -> tuple[History, list[DetectorClient]]:
    """The federated rounds of `config`, kept in `folder`.

    Args:
        resume: continue what `folder` holds; start if it holds nothing yet.
        name: by which trackers know the run; "" is the folder's.

    Raises:
        PolypfedError: see `Federation.run`.
    """
    clients = clients_of(config, sites, folder)
    fed = federation(config, clients)
    tracking = TrackSettings(**config.track).open(name or folder.name, shown(config))
    history = recorded(fed, config.federation.rounds, backend(config), folder, listen, tracking, resume=resume)
    about = json.loads((folder / "run.json").read_text()) | {"versions": versions(), "config": describe(config)}
    write_atomic(folder / "run.json", json.dumps(about, indent=1).encode() + b"\n")
    return history, clients


def shown(config: Config) -> dict[str, Any]:
    """What trackers may show of a config: its settings without where anything lies."""
    tables = {k: v for k, v in describe(config).items() if k not in ("data", "compare", "baselines", "track")}
    return {name: value for name, value in flat(tables).items() if name != "model.warm_start"}


def models_of(config: Config, clients: Sequence[DetectorClient], history: History, folder: Path) -> dict[str, Vector]:
    """The model that each site ends with, whole: (P,) by site.

    That is the global one, or under a personalised strategy (FedBN, FedPer, Ditto) the site's own, put together from
    what the site keeps below `folder`. A site that keeps its part elsewhere is left out.
    """
    strategy, found = Registry.build(config.strategy), {}
    accepted = checkpoints.load(folder / "checkpoint").accepted
    staged = config.privacy.staged
    for client in clients:
        worker: Any = strategy.at_site(client)
        place = folder / "sites" / client.name
        shared = history.model
        if shared is None:  # the server sees none: it lies at the sites
            if not (place / "model.safetensors").exists():
                continue
            shared = load_model(place / "model.safetensors")[1]
        if not hasattr(worker, "own"):
            found[client.name] = shared
            continue
        states, last = States(place / "state"), accepted.get(client.name, 0)
        if not last or last in states:
            state = states.get(last)
            worker.restore(unpack_inner(state) if staged else state)
            found[client.name] = worker.own(shared)
    return found


def learners(config: Config, sites: dict[str, Site]) -> list[DetectorClient]:
    """What is trained for comparison: all images in one place, and each site alone; always on all images."""
    pooled = _builder(config)(name="central", train=[s.train for s in sites.values()], selector=All())
    alone = clients_of(config, sites, None)
    return ([pooled] if config.baselines.central else []) + (alone if config.baselines.local else [])


def compare(
    config: Config, sites: dict[str, Site], history: History, folder: Path, listen: Listener | None = None
) -> list[dict[str, Any]]:
    """Train the baselines for as many epochs and write RUN/baselines.jsonl; returns its rows."""
    path, chosen = folder / "baselines.jsonl", learners(config, sites)
    if not chosen:
        return []
    done = read_rows(path)
    if done and done[-1]["round"] == config.federation.rounds:
        return done
    rounds, seed, plain = config.federation.rounds, config.federation.seed, clients_of(config, sites, None)
    ours = models_of(config, plain, history, folder)
    rows = baselines.rows(chosen, plain, ours, rounds, seed, backend(config), listen)
    write_atomic(path, "".join(json.dumps(r) + "\n" for r in rows).encode())
    return rows


def draw_samples(config: Config, clients: Sequence[DetectorClient], history: History, folder: Path) -> None:
    """Write RUN/samples: validation images of each site with their true boxes and what the site's last model finds."""
    write_samples(clients, models_of(config, clients, history, folder), folder)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def versions() -> dict[str, str]:
    """Versions of polypfed and of what decides its results, where installed."""
    found = {}
    for name in ("polypfed", "numpy", "torch", "torchvision", "ultralytics", "opencv-python", "safetensors"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
