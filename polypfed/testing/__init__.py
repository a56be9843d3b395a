"""Checks for your own strategies, clients, backends and stages; ours pass them too. They need no test framework."""

from polypfed.testing.backend import check_backend
from polypfed.testing.client import check_client
from polypfed.testing.errors import ContractError
from polypfed.testing.sample import SampleClient, sample_sites
from polypfed.testing.stage import check_stage
from polypfed.testing.strategy import check_strategy

__all__ = [
    "ContractError",
    "SampleClient",
    "check_backend",
    "check_client",
    "check_stage",
    "check_strategy",
    "sample_sites",
]
