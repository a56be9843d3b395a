"""TOML files -> validated objects, all errors at once; and the objects -> a federation ready to run."""

import json
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from polypfed.backends.local import Local
from polypfed.core.errors import ConfigError
from polypfed.detect.widths import PATTERN
from polypfed.federation import Backend, Federation
from polypfed.privacy import Ledger, stages
from polypfed.select.config import from_config
from polypfed.strategies.base import Strategy
from polypfed.strategies.registry import Registry
from polypfed.track import TrackSettings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Places = str | list[str]
"""A path, or several of which the first that exists is taken; "" is no path. `$NAME` is an environment variable."""


class _Table:
    """A table of the file: unknown keys are errors, and numbers are not guessed from strings."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Synth(_Table):
    """Synthetic sites, made when the run starts: training and validation images per site, side in pixels."""

    sites: Count = 4
    train: Count = 100
    val: Count = 40
    size: Annotated[int, Field(ge=32, le=1024)] = 192
    seed: int = 0


@dataclass(frozen=True)
class Data(_Table):
    """Where the sites' images come from: a ready partition, YOLO folders to divide, or synthetic frames."""

    partition: Places | None = None
    root: Places | None = None
    sources: list[str] = field(default_factory=list)
    synth: Synth | None = None
    mode: Literal["by_centre", "iid", "quantity", "dirichlet"] = "by_centre"
    sites: Any = None
    val: Annotated[float, Field(gt=0, lt=1)] = 0.25
    seed: int = 0
    alpha: Positive = 0.5
    shares: list[Positive] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    min_images: Count = 2


@dataclass(frozen=True)
class Model(_Table):
    """The detector: one class, built offline from its architecture file."""

    arch: Annotated[str, Field(pattern=PATTERN)] = "yolov5n"
    image_size: Annotated[int, Field(ge=32, le=1536, multiple_of=32)] = 192
    warm_start: Places | None = None
    init_seed: int = 0


@dataclass(frozen=True)
class Train(_Table):
    """Local training at a site in one server round."""

    epochs: Count = 1
    batch: Count = 16
    optimizer: Literal["SGD", "Adam", "AdamW"] = "AdamW"
    lr: Positive = 1e-3
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    clip: Annotated[float, Field(ge=0)] = 10.0
    freeze: Annotated[int, Field(ge=0)] = 0
    patience: Annotated[int, Field(ge=0)] = 0
    threads: Count = 1


@dataclass(frozen=True)
class Augment(_Table):
    """What is done to training images; see `polypfed.clients.frames.Augment`."""

    mosaic: Share = 0.0
    affine: bool = True
    hsv: bool = True
    flip: bool = True
    flip_vertical: bool = True


@dataclass(frozen=True)
class Rounds(_Table):
    """How the sites work together; see `polypfed.Federation`."""

    rounds: Count = 5
    quorum: Count = 1
    deadline: Positive = 3600.0
    per_round: Count | None = None
    retries: Annotated[int, Field(ge=0)] = 1
    seed: int = 0
    evaluate: Literal["matrix", "global", "off"] | None = None
    """None is "matrix", and "global" where a mode of privacy forbids showing a site's model to the others."""
    keep_best: str = "map50"


@dataclass(frozen=True)
class Carrier(_Table):
    """What carries the rounds."""

    name: Literal["local", "flower", "nvflare"] = "local"
    workers: Count = 1


@dataclass(frozen=True)
class Privacy(_Table):
    """What is done to an update before it leaves a site; see `polypfed.privacy.stages`."""

    mode: Literal["plain", "dp", "he", "secagg", "hybrid"] = "plain"
    bits: Positive | None = None
    """Of a value. None is 8 where integers are added anyway; plain and dp then send float32."""
    bound: Positive | None = None
    cap: Count = 4096
    profile: Literal["std", "pq128", "tc256"] = "std"
    threshold: Count | None = None
    norm: Positive = 1.0
    multiplier: Positive = 1.0
    where: Literal["site", "server"] = "server"
    epsilon: Positive | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5

    @property
    def staged(self) -> bool:
        """Does an update pass through stages?"""
        return self.mode != "plain" or self.bits is not None


@dataclass(frozen=True)
class Baselines(_Table):
    """What to compare with, at equal epochs: one model per site on its own images, one model on all images."""

    local: bool = False
    central: bool = False


@dataclass(frozen=True)
class Config(_Table):
    """One run."""

    data: Data
    model: Model = Model()
    train: Train = Train()
    augment: Augment = Augment()
    select: dict[str, Any] = field(default_factory=lambda: {"name": "below", "threshold": 0.7})
    strategy: dict[str, Any] = field(default_factory=lambda: {"name": "fedavg"})
    federation: Rounds = Rounds()
    backend: Carrier = Carrier()
    privacy: Privacy = Privacy()
    baselines: Baselines = Baselines()
    track: dict[str, Any] = field(default_factory=dict)
    """Where the run's figures go as well; see `polypfed.track.TrackSettings`."""
    compare: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Strategies by the names they go by in `polypfed compare`; the key itself names one that says no `name`."""

    @property
    def evaluate(self) -> Literal["matrix", "global", "off"]:
        """What is scored after a round."""
        return self.federation.evaluate or ("global" if self.privacy.staged else "matrix")


_ADAPTER = TypeAdapter(Config)


def load(path: str | Path, override: Mapping[str, Any] | None = None) -> Config:
    """Read and check a TOML file.

    Args:
        override: values that replace the file's, by dotted name, e.g. `{"federation.rounds": 3}`. Paths among them are
            relative to the present folder.

    Raises:
        ConfigError: the file cannot be read, or settings are wrong; all of them are named, one a line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot be read ({reason})", where=path) from None
    return parse(text, where=path, override=override)


def parse(text: str, where: Path, override: Mapping[str, Any] | None = None) -> Config:
    """The config in `text`; relative paths in it are relative to the folder of `where`.

    Raises:
        ConfigError: as `load`.
    """
    try:
        tables = _overridden(tomllib.loads(text), override or {})
        config = _ADAPTER.validate_json(json.dumps(tables, default=str))  # as JSON: strict mode, yet tables nest
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"is not TOML: {error}", where=where) from None
    except ValidationError as error:
        raise ConfigError("\n".join(_line(where, e) for e in error.errors())) from None
    checks = (("select", from_config), ("strategy", Registry.build), ("track", TrackSettings.from_table))
    for table, build in checks:
        try:
            build(getattr(config, table))
        except ConfigError as error:
            raise ConfigError(error.problem, where=f"{where}: [{table}] {error.where}", remedy=error.remedy) from None
    return _resolved(config, where.resolve().parent)


def _overridden(tables: dict[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in override.items():
        *path, key = name.split(".")
        table = tables
        for step in path:
            table = table.setdefault(step, {})
        table[key] = str(value.absolute()) if isinstance(value, Path) else value
    return tables


def _line(path: Path, error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden" or error["type"] == "unexpected_keyword_argument":
        return f"{path}: {name}: there is no such setting. Remove it, or correct its name"
    return f"{path}: {name}: {error['msg']}, not {error['input']!r}"


def _resolved(config: Config, base: Path) -> Config:
    data = config.data
    if sum(x is not None for x in (data.partition, data.root, data.synth)) != 1:
        raise ConfigError("give exactly one of partition, root and synth", where="data", remedy="Remove the others")
    partition, root = _place(data.partition, base, "data.partition"), _place(data.root, base, "data.root")
    warm = _place(config.model.warm_start, base, "model.warm_start")
    found = replace(data, partition=partition, root=root)
    tracked = asdict(TrackSettings.from_table(config.track, base))
    track = {key: tracked[key] for key in config.track}
    return replace(config, data=found, model=replace(config.model, warm_start=warm), track=track)


def _place(places: Places | None, base: Path, field_name: str) -> str | None:
    """The first of `places` that exists."""
    if places is None:
        return None
    tried = [places] if isinstance(places, str) else places
    for place in tried:
        if not place:
            return None
        expanded = os.path.expandvars(place)
        if "$" not in expanded and (found := base / Path(expanded).expanduser()).exists():
            return str(found.resolve())
    raise ConfigError(
        f"none of these exists: {', '.join(tried)}", where=field_name, remedy="Give a path, or set the variable"
    )


def describe(config: Config) -> dict[str, Any]:
    """The config as plain values, without what is not set."""

    def clean(value: Any) -> Any:
        return {k: clean(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    return dict(clean(asdict(config)))


def federation(config: Config, clients: Sequence[Any]) -> Federation:
    """The federation that `config` describes, over these clients."""
    settings = asdict(config.federation) | {"evaluate": config.evaluate}
    del settings["rounds"]
    strategy = Registry.build(_even(config.strategy) if config.privacy.mode == "dp" else config.strategy)
    return Federation(clients=clients, strategy=strategy, **settings, **protection(config.privacy, strategy))


def _even(strategy: Mapping[str, Any]) -> dict[str, Any]:
    """Under noise all sites weigh alike, unless the file names a reducer: weights by examples depend on the data."""
    if "inner" in strategy:
        return {**strategy, "inner": _even(strategy["inner"])}
    given = {**strategy, "reducer": {"name": "mean", "weights": "uniform"}, **strategy}
    try:
        Registry.build(given)
    except ConfigError:  # a strategy whose mean is its own
        return dict(strategy)
    return given


def protection(given: Privacy, strategy: Strategy) -> dict[str, Any]:
    """The stages and the budget that the table asks for, as settings of a Federation."""
    settings = asdict(given)
    epsilon, delta = settings.pop("epsilon"), settings.pop("delta")
    if getattr(strategy.reducer, "weights", "uniform") != "examples":
        settings["cap"] = None
    found: dict[str, Any] = {"stages": stages(**settings)}
    return found | ({"budget": Ledger(epsilon or math.inf, delta)} if given.mode == "dp" else {})


def backend(config: Config) -> Backend:
    """The backend that `config` names."""
    if config.backend.name == "flower":
        from polypfed.backends import Flower

        return Flower(workers=config.backend.workers)
    if config.backend.name == "nvflare":
        from polypfed.backends import NVFlare

        return NVFlare(workers=config.backend.workers)
    return Local(workers=config.backend.workers)
