"""Strategies on one config at equal budget: the same sites, data, initial model, rounds and epochs, seed by seed."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polypfed import run as runs
from polypfed.clients import DetectorClient
from polypfed.clients.base import agreed
from polypfed.config import Config, describe, federation
from polypfed.core.errors import CheckpointError, ConfigError, LayoutError, QuorumError
from polypfed.core.files import write_atomic
from polypfed.core.settings import flat, whole
from polypfed.data import Site
from polypfed.federation import Listener
from polypfed.report.comparison import Outcome
from polypfed.strategies.base import rehearse
from polypfed.strategies.registry import Registry

SETTINGS = "settings.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_FREE = ("strategy", "compare", "backend", "baselines", "track")  # of the config: may differ when a comparison goes on
_FREE_ROUNDS = ("rounds", "deadline", "retries", "evaluate", "keep_best")


@dataclass(frozen=True)
class Trial:
    """One run to make: a strategy, by the name it goes by, with one seed. The run is kept in `folder`."""

    name: str
    seed: int
    config: Config
    folder: Path


def variants(config: Config, names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """What to compare, by name: a [compare.NAME] table of the config, else the strategy of that name as it is.

    Args:
        names: by default those of all tables.

    Raises:
        ConfigError: a name is unknown, or a setting; or there is nothing to compare.
    """
    chosen = list(names) or list(config.compare)
    if not chosen:
        raise ConfigError("names no strategy", where="--strategies", remedy="Name some, or add [compare.NAME] tables")
    if twice := {name for name in chosen if chosen.count(name) > 1}:
        raise ConfigError(f"{min(twice)!r} is named twice", where="--strategies")
    return {name: _described(config, name) for name in chosen}


def _described(config: Config, name: str) -> dict[str, Any]:
    if not _NAME.fullmatch(name) or name == "data":
        raise ConfigError(f"{name!r} cannot name a run's folder", where="--strategies", remedy=f"Use {_NAME.pattern}")
    where = f"[compare.{name}]" if name in config.compare else "--strategies"
    try:
        return Registry.describe(Registry.build({"name": name, **config.compare.get(name, {})}))
    except ConfigError as error:
        tables = f"; tables of the config: {sorted(config.compare)}" if config.compare else ""
        raise ConfigError(error.problem, where=f"{where} {error.where}", remedy=error.remedy + tables) from None


def plan(config: Config, names: Sequence[str], seeds: int, folder: Path) -> list[Trial]:
    """The runs of a comparison, seed by seed.

    Seed k adds k to every seed of the config: of the data, the initial model and the federation; so the first one is
    the config as it stands. Evaluation is that of the global model, or of the sites' own ones; no baselines.

    Raises:
        ConfigError: as `variants`, or `seeds` is below 1.
    """
    whole("seeds", seeds, 1)
    chosen = variants(config, names)
    return [
        Trial(name, one.federation.seed, replace(one, strategy=strategy), folder / f"seed-{one.federation.seed}" / name)
        for one in (_seeded(config, k) for k in range(seeds))
        for name, strategy in chosen.items()
    ]


def _seeded(config: Config, k: int) -> Config:
    data, rounds = config.data, config.federation
    made = None if data.synth is None else replace(data.synth, seed=data.synth.seed + k)
    return replace(
        config,
        data=replace(data, seed=data.seed + k, synth=made),
        model=replace(config.model, init_seed=config.model.init_seed + k),
        federation=replace(rounds, seed=rounds.seed + k, evaluate="global"),
    )


def claim(config: Config, folder: Path, *, resume: bool = False) -> None:
    """Make `folder` the place of this comparison, or see that it was begun with the same settings.

    More rounds, seeds and strategies may be asked for when it goes on; nothing else may change.

    Raises:
        ConfigError: it holds one already and `resume` is False; or it cannot be written.
        CheckpointError: it was begun with other settings.
    """
    path, now = folder / SETTINGS, flat(_fixed(config))
    try:
        if not path.exists():
            write_atomic(path, json.dumps(_fixed(config), indent=1).encode() + b"\n")
            return
    except OSError as error:
        raise ConfigError(f"cannot hold a comparison ({error.strerror})", where=folder) from None
    if not resume:
        raise ConfigError(
            "holds a comparison already", where=folder, remedy="Continue it with --resume, or give --directory"
        )
    before = flat(_read(path))
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise CheckpointError(
                f"{name} was {before.get(name)!r} when the comparison began and is {now.get(name)!r} now",
                where=folder,
                remedy="Resume with the settings it began with, or give --directory",
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"is damaged ({error})", where=path, remedy="Start the comparison anew") from None


def _fixed(config: Config) -> dict[str, Any]:
    found = {k: v for k, v in describe(config).items() if k not in _FREE}
    found["federation"] = {k: v for k, v in found["federation"].items() if k not in _FREE_ROUNDS}
    return dict(json.loads(json.dumps(found)))


def _unwatched(trial: Trial, sites: int) -> AbstractContextManager[Listener]:
    return nullcontext(lambda event: None)


def _silent() -> AbstractContextManager[runs.Progress]:
    return nullcontext(lambda done, total: None)


def outcomes(
    trials: Sequence[Trial],
    watch: Callable[[Trial, int], AbstractContextManager[Listener]] = _unwatched,
    making: Callable[[], AbstractContextManager[runs.Progress]] = _silent,
) -> Iterator[Outcome]:
    """Make the runs one after the other; one that is finished is read, one that was broken off goes on.

    Args:
        watch: given a trial and the number of its sites, the context it runs in and who listens to it.
        making: gives the context in which data are made, and who is told how far they are.

    Raises:
        PolypfedError: what no other strategy would survive either: the data, the disk, a changed setting.
    """
    seed, sites = -1, dict[str, Site]()
    for trial in trials:
        if trial.seed != seed:
            with making() as progress:
                seed, sites = trial.seed, runs.sites_of(trial.config, trial.folder.parent, progress)
        with watch(trial, len(sites)) as listen:
            outcome = _outcome(trial, sites, listen)
        yield outcome


def _outcome(trial: Trial, sites: dict[str, Site], listen: Listener) -> Outcome:
    settings, rounds = trial.config.strategy, trial.config.federation.rounds
    if reason := refusal(trial, sites):
        return Outcome(trial.name, trial.seed, settings, "refused", rounds, reason)
    try:
        called = f"{trial.name}-seed-{trial.seed}"
        history, _ = runs.federate(trial.config, sites, trial.folder, resume=True, listen=listen, name=called)
    except (QuorumError, LayoutError) as error:
        why = _last_failure(trial.folder) if isinstance(error, QuorumError) else ""
        return Outcome(trial.name, trial.seed, settings, "failed", rounds, error.problem + why)
    return Outcome(trial.name, trial.seed, settings, "done", rounds, rows=history.rows)


def refusal(trial: Trial, sites: dict[str, Site]) -> str:
    """Why this strategy cannot work with these sites, or ""; what is wrong for all strategies is raised."""
    clients = runs.clients_of(trial.config, sites, None)
    federation(replace(trial.config, strategy={"name": "fedavg"}), clients)
    try:
        _rehearsed(trial.config, clients)
    except ConfigError as error:
        return str(error)
    return ""


def _rehearsed(config: Config, clients: Sequence[DetectorClient]) -> None:
    strategy, names = federation(config, clients).strategy, [c.name for c in clients]
    strategy.check(agreed(clients)[0], names, config.federation.per_round or len(names))
    rehearse(strategy, names)
    for client in clients:
        client.check(strategy)
        strategy.at_site(client)


def _last_failure(folder: Path) -> str:
    rows = runs.read_rows(folder / "failures.jsonl")
    return f"; {rows[-1]['client']}: {rows[-1]['detail']}" if rows else ""
