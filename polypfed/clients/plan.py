"""What a task asks for, apart from which run and round it is of: what a site's owner can approve, and its hash."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Plan = dict[str, Any]


def plan_of(config: Mapping[str, Any]) -> Plan:
    """Strategy, stages and whether noise is only simulated, from a task's config."""
    about = config.get("stages") or {}
    return {
        "strategy": config.get("strategy"),
        "stages": about.get("list", []),
        "simulate": bool(about.get("simulate", False)),
    }


def digest(config: Mapping[str, Any]) -> str:
    """Hash of the plan: equal plans, equal hashes.

    >>> digest({"strategy": {"name": "fedavg"}, "seed": 1}) == digest({"strategy": {"name": "fedavg"}, "seed": 2})
    True
    """
    return hash_of(plan_of(config))


def hash_of(plan: Plan) -> str:
    """ "sha256:" and 64 hex digits."""
    text = json.dumps(plan, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def mode_of(config: Mapping[str, Any]) -> str:
    """The mode of privacy: plain, dp, he, secagg or hybrid."""
    kinds = {str(stage.get("name", "")) for stage in plan_of(config)["stages"] if isinstance(stage, Mapping)}
    if "encrypt" in kinds:
        return "hybrid" if "mask" in kinds else "he"
    return "secagg" if "mask" in kinds else "dp" if "noise" in kinds else "plain"


def names_of(description: object) -> list[str]:
    """The names of a strategy and of those it wraps, outermost first."""
    found = list[str]()
    while isinstance(description, Mapping):
        found.append(str(description.get("name", "")).lower())
        description = description.get("inner")
    return found
