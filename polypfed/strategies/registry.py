"""Strategies by name: a task carries a name and numbers, never code."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, ClassVar, TypeVar, cast

from polypfed.core.errors import ConfigError
from polypfed.core.reduce import Mean
from polypfed.core.robust import GeometricMedian, Krum, Median, MultiKrum, NormClip, TrimmedMean
from polypfed.strategies.base import Base, Strategy

A = TypeVar("A")

REDUCERS = (Mean, Median, TrimmedMean, Krum, MultiKrum, GeometricMedian, NormClip)


class Registry:
    """Strategies, and the reducers they are given, by name."""

    _known: ClassVar[dict[str, type]] = {kind.__name__.lower(): kind for kind in REDUCERS}

    @classmethod
    def add(cls, kind: type[A]) -> type[A]:
        """Class decorator: make a strategy or a reducer usable in TOML files and by worker processes."""
        cls._known[kind.__name__.lower()] = kind
        return kind

    @classmethod
    def strategies(cls) -> list[str]:
        """The names of the known strategies."""
        return sorted(name for name, kind in cls._known.items() if hasattr(kind, "step"))

    @classmethod
    def modules(cls) -> list[str]:
        """Where the known strategies are defined: a worker process imports these to know them too."""
        return sorted({kind.__module__ for kind in cls._known.values()} - {"__main__"})  # spawn imports that one itself

    @classmethod
    def describe(cls, strategy: Strategy) -> dict[str, Any]:
        """The strategy as JSON values; `build` gives it back."""
        return cast("dict[str, Any]", cls.plain(strategy))

    @classmethod
    def plain(cls, value: Any) -> Any:
        """Any known dataclass as JSON values, its name among them."""
        return _plain(value)

    @classmethod
    def revive(cls, description: Mapping[str, Any], where: str) -> Any:
        """The known dataclass that `description` names.

        Raises:
            ConfigError: the name or a setting is unknown or out of range; it is said under `where`.
        """
        return cls._build(description, where)

    @classmethod
    def check(cls, strategy: Strategy) -> None:
        """See that clients can rebuild the strategy from what they are told of it.

        Raises:
            ConfigError: it is not registered, or its settings do not survive JSON.
        """
        if not isinstance(strategy, Base):
            raise ConfigError(
                f"{type(strategy).__name__} is no strategy", where="strategy", remedy="Derive it from strategies.Base"
            )
        try:
            again = cls.build(json.loads(json.dumps(cls.describe(strategy))))
        except TypeError as error:
            raise ConfigError(f"is not a dataclass of plain settings ({error})", where="strategy") from None
        if again != strategy:
            raise ConfigError("cannot be rebuilt from its own description", where="strategy")

    @classmethod
    def build(cls, description: Mapping[str, Any]) -> Strategy:
        """The strategy that `description` names.

        Raises:
            ConfigError: the name or a hyper-parameter is unknown or out of range.
        """
        found = cls._build(description, "strategy")
        if not hasattr(found, "step"):
            raise ConfigError(
                f"{description['name']!r} is a reducer", where="strategy", remedy="Give it as the reducer of one"
            )
        return cast(Strategy, found)

    @classmethod
    def _build(cls, description: Mapping[str, Any], where: str) -> Any:
        settings = dict(description)
        name = str(settings.pop("name", "")).lower()
        if name not in cls._known:
            known = cls.strategies() if where == "strategy" else sorted(cls._known)
            sort = "strategy" if where == "strategy" else "strategy or reducer"
            raise ConfigError(f"no {sort} is called {name!r}", where=where, remedy=f"Known: {known}")
        kind = cls._known[name]
        allowed = {f.name for f in fields(kind)}
        if unknown := set(settings) - allowed:
            raise ConfigError(
                f"{name} has no setting {sorted(unknown)[0]!r}", where=where, remedy=f"It has: {sorted(allowed)}"
            )
        needed = (f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)
        if lacking := sorted(set(needed) - set(settings)):
            raise ConfigError(f"{name} needs the setting {lacking[0]!r}", where=where)
        return kind(**{key: cls._revived(value, f"{where}.{key}") for key, value in settings.items()})

    @classmethod
    def _revived(cls, value: Any, where: str) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("name"), str):
            return cls._build(value, where)
        return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        settings = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"name": type(value).__name__.lower()} | settings
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
