"""Federated algorithms, one file each: the server half and the client half side by side, as in the paper's box."""

from polypfed.strategies.base import Base, Cohort, LocalRule, PlainRule, Registry, State, Strategy
from polypfed.strategies.fedavg import FedAvg

__all__ = ["Base", "Cohort", "FedAvg", "LocalRule", "PlainRule", "Registry", "State", "Strategy"]
