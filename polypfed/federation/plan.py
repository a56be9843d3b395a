"""What a federation's tasks will ask for, before any is sent: what the owner of a site approves."""

from typing import TYPE_CHECKING, Any

from polypfed.clients.outbox import describe
from polypfed.strategies.registry import Registry

if TYPE_CHECKING:
    from polypfed.federation.api import Federation


def task_config(fed: "Federation") -> dict[str, Any]:
    """The part of every task's config that its plan is made of; see `polypfed.clients.plan`."""
    config: dict[str, Any] = {"strategy": Registry.describe(fed.strategy)}
    if fed.stages:
        config["stages"] = {"list": describe(fed.stages), "simulate": fed.seeded_noise}
    return config
