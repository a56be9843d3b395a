"""Selectors by name, as configuration files write them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from polypfed.core.errors import ConfigError
from polypfed.select.rules import All, Below, HardestK, MissedOrFalse, Random, Replay, Selector

_RULES: dict[str, type] = {
    "all": All,
    "below": Below,
    "random": Random,
    "hardest-k": HardestK,
    "missed-or-false": MissedOrFalse,
    "replay": Replay,
}
_NESTED = ("inner", "otherwise")


def from_config(config: Mapping[str, Any] | str, where: str = "selector") -> Selector:
    """Build a selector from a table with a `name` and the rule's own settings, or from a bare name.

    Raises:
        ConfigError: unknown name or key, missing or wrong setting; names the field.

    >>> from_config({"name": "replay", "share": 0.2, "inner": {"name": "below", "threshold": 0.6}})
    Replay(inner=Below(threshold=0.6), share=0.2)
    >>> from_config("all")
    All()
    """
    table: dict[str, Any] = {"name": config} if isinstance(config, str) else dict(config)
    name = table.pop("name", None)
    rule = _RULES.get(name) if isinstance(name, str) else None
    if rule is None:
        raise ConfigError(f"unknown selector {name!r}", where=f"{where}.name", remedy=f"Known: {', '.join(_RULES)}")
    allowed = [f.name for f in fields(rule)]
    for key in table:
        if key not in allowed:
            known = ", ".join(allowed) or "none"
            raise ConfigError(f"{name} has no such setting", where=f"{where}.{key}", remedy=f"Settings: {known}")
    for key in _NESTED:
        if key in table and table[key] is not None:
            table[key] = from_config(table[key], f"{where}.{key}")
    try:
        selector: Selector = rule(**table)
    except TypeError as missing:
        raise ConfigError(str(missing).partition("() ")[2] or str(missing), where=where) from None
    return selector


def to_config(selector: Selector) -> dict[str, Any]:
    """The table `from_config` reads back: what a run writes into its own record.

    >>> to_config(Below(0.6))
    {'name': 'below', 'threshold': 0.6}
    """
    names = {rule: name for name, rule in _RULES.items()}
    if type(selector) not in names:
        raise ConfigError(f"{type(selector).__name__} is not a built-in selector", where="selector")
    table: dict[str, Any] = {"name": names[type(selector)]}
    for f in fields(selector):  # type: ignore[arg-type]  # every built-in rule is a dataclass
        value = getattr(selector, f.name)
        table[f.name] = to_config(value) if f.name in _NESTED and value is not None else value
    return {key: value for key, value in table.items() if value is not None}
