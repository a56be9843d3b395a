"""Which samples are worth training on, and the record of what was chosen."""

from polypfed.select.config import from_config, to_config
from polypfed.select.decisions import Decision, decisions, read_decisions, write_decisions
from polypfed.select.rules import (
    All,
    Below,
    HardestK,
    Judge,
    MissedOrFalse,
    Random,
    Replay,
    Score,
    Selector,
)

__all__ = [
    "All",
    "Below",
    "Decision",
    "HardestK",
    "Judge",
    "MissedOrFalse",
    "Random",
    "Replay",
    "Score",
    "Selector",
    "decisions",
    "from_config",
    "read_decisions",
    "to_config",
    "write_decisions",
]
