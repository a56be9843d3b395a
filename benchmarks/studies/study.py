"""A study as its TOML file states it: a question, a config that all cells share, and what each cell changes."""

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from polypfed import config as configs
from polypfed.config import Config
from polypfed.core.errors import ConfigError

HERE = Path(__file__).parent
_ASIDE = ("backend", "baselines", "compare", "privacy", "track")  # tables that decide nothing; privacy is in `stages`
_OWN = ("pool", "stages")  # of a cell: what no run's config has


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        pool: sites whose training images lie in one place, "*" for all; none: the sites train as a federation.
        stages: what is done to an update, as tables with a `name`; see `polypfed.privacy`.
    """

    name: str
    seed: int
    config: Config
    pool: tuple[str, ...] = ()
    stages: tuple[Mapping[str, Any], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the outcome; where the files lie on this machine does not."""
        found = {k: v for k, v in configs.describe(self.config).items() if k not in _ASIDE}
        for table, field in (("data", "root"), ("data", "partition"), ("model", "warm_start")):
            if table in found and field in found[table]:
                found[table] = found[table] | {field: Path(str(found[table][field])).name}
        found |= {"seed": self.seed, "pool": list(self.pool), "stages": [dict(s) for s in self.stages]}
        return dict(json.loads(json.dumps(found)))

    @property
    def key(self) -> str:
        """Of the settings: a cell is computed once, whatever it is called."""
        return digest(self.settings)

    @property
    def data_key(self) -> str:
        """Cells of the same data share one division into sites."""
        return digest(asdict(self.config.data))


def digest(value: Any) -> str:
    """Twelve hex digits of any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Study:
    """A study at one budget.

    Attributes:
        against: the cell that the others are compared with, in points of mAP50.
        points: how far below it is near enough.
        plot: "curves", "bytes" or "bars".
        details: what a second table and figure show: "rounds" (kept, confidence, minutes by round), "easy" (what was
            forgotten), "losses" (and early stopping) and "levels" (P, R, F1 and images by confidence).
    """

    name: str
    question: str
    against: str
    points: float
    plot: str
    cells: tuple[Cell, ...]
    details: tuple[str, ...] = ()


def only(study: Study, wanted: Sequence[str] | None, seeds: Sequence[int] | None = None) -> Study:
    """The study with these cells and seeds alone, cells in the order asked for; None: all.

    Raises:
        ConfigError: it has no such cell.
    """
    known = {c.name for c in study.cells}
    if unknown := sorted(set(wanted or ()) - known):
        raise ConfigError(f"has no cell {unknown[0]!r}", where=study.name, remedy=f"It has: {', '.join(sorted(known))}")
    found = study.cells if wanted is None else tuple(c for name in wanted for c in study.cells if c.name == name)
    return replace(study, cells=tuple(c for c in found if seeds is None or c.seed in seeds))


def names() -> list[str]:
    """The studies there are."""
    return sorted(p.stem for p in HERE.glob("*.toml"))


def load(name: str, budget: str, folder: Path = HERE) -> Study:
    """Read a study.

    Raises:
        ConfigError: there is none of this name or budget, or a setting is wrong.
    """
    path = folder / f"{name}.toml"
    if not path.exists():
        raise ConfigError(f"no study is called {name!r}", where="studies", remedy=f"Known: {', '.join(names())}")
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    if budget not in tables["budget"]:
        raise ConfigError(f"has no budget {budget!r}", where=path, remedy=f"It has: {sorted(tables['budget'])}")
    words = {k: tables[k] for k in ("question", "against", "plot")}
    words |= {"points": tables.get("points", 1.0), "details": tuple(tables.get("details", ()))}
    return Study(name, **words, cells=tuple(_cells(path, tables, budget)))


def _cells(path: Path, tables: Mapping[str, Any], budget: str) -> Iterator[Cell]:
    shared = flat(tables["base"]) | flat(tables["budget"][budget].get("base", {}))
    seeds = set(tables["budget"][budget]["seeds"])
    for seed in sorted(seeds.union(*(c.get("seeds", ()) for c in tables["cells"].values()))):
        for name, changes in tables["cells"].items():
            if budget not in changes.get("budgets", (budget,)) or seed not in seeds.union(changes.get("seeds", ())):
                continue
            own = {k: v for k, v in changes.items() if k not in (*_OWN, "budgets", "seeds")}
            config = configs.parse("[data]", path, shared | flat(own))
            if config.privacy.mode != "plain":
                raise ConfigError("is what a cell's `stages` say", where=f"{path}: {name}: privacy.mode")
            config = seeded(config, seed)
            yield Cell(name, seed, config, tuple(changes.get("pool", ())), tuple(changes.get("stages", ())))


def seeded(config: Config, seed: int) -> Config:
    """The config with every seed set: of the division, the initial model and the run."""
    made = None if config.data.synth is None else replace(config.data.synth, seed=seed)
    return replace(
        config,
        data=replace(config.data, seed=seed, synth=made),
        model=replace(config.model, init_seed=seed),
        federation=replace(config.federation, seed=seed, evaluate="global"),
    )


def flat(tables: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """Dotted names, down to the settings; strategies and selectors are replaced whole, not merged."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        whole = not isinstance(value, Mapping) or f"{head}{key}" in ("strategy", "select")
        found |= {head + key: value} if whole else flat(value, f"{head}{key}.")
    return found
