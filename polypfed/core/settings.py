"""Checks of single settings, each ending in a ConfigError that names the field."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polypfed.core.errors import ConfigError

_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


def whole(field: str, value: object, low: int | None = None, high: int | None = None) -> None:
    """Raise a ConfigError unless `value` is an int (not a bool) from `low` to `high`, both included."""
    if type(value) is int and (low is None or value >= low) and (high is None or value <= high):
        return
    limits = "" if low is None else f" of at least {low}" if high is None else f" from {low} to {high}"
    raise ConfigError(f"{value!r} is not a whole number{limits}", where=field)


def positive(**values: object) -> None:
    """Raise a ConfigError for the first of `values` that is not a finite number above zero."""
    for field, value in values.items():
        if not (_number(value) and 0 < value < math.inf):  # type: ignore[operator]
            raise ConfigError(f"{value!r} is not a number above 0", where=field)


def rate(**values: object) -> None:
    """Raise a ConfigError for the first of `values` that is not a number above zero that float32 can hold."""
    positive(**values)
    for field, value in values.items():
        if not _SMALLEST <= value <= _LARGEST:  # type: ignore[operator]  # a number, as just seen
            raise ConfigError(f"{value!r} is too small or too large for float32", where=field)


def not_negative(**values: object) -> None:
    """Raise a ConfigError for the first of `values` that is not a finite number of at least zero."""
    for field, value in values.items():
        if not (_number(value) and 0 <= value < math.inf):  # type: ignore[operator]
            raise ConfigError(f"{value!r} is not a number of at least 0", where=field)


def fraction(**values: object) -> None:
    """Raise a ConfigError for the first of `values` that is not a number from 0 to below 1."""
    for field, value in values.items():
        if not (_number(value) and 0 <= value < 1):  # type: ignore[operator]
            raise ConfigError(f"{value!r} is not a number from 0 to below 1", where=field)


def _number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def site_names(names: Sequence[object]) -> None:
    """Raise a ConfigError unless every name can name a site, its folder and its files, and none occurs twice."""
    for name in names:
        if not isinstance(name, str) or not _SITE.fullmatch(name):
            raise ConfigError(f"{name!r} cannot name a site", where="clients", remedy=f"Use {_SITE.pattern}")
    if len(set(names)) < len(names):
        raise ConfigError("two sites share a name", where="clients", remedy="Rename one")


def flat(tables: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """Nested settings by dotted name.

    >>> flat({"strategy": {"name": "fedprox", "mu": 0.1}, "seed": 0})
    {'strategy.name': 'fedprox', 'strategy.mu': 0.1, 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key, value in tables.items():
        found |= flat(value, f"{head}{key}.") if isinstance(value, Mapping) else {f"{head}{key}": value}
    return found
