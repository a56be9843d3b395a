"""Federated algorithms, one file each: the server half and the client half side by side, as in the paper's box."""

from polypfed.strategies.base import Averaging, Base, Cohort, LocalRule, PlainRule, State, Strategy, Wrapper
from polypfed.strategies.ditto import Ditto
from polypfed.strategies.fedavg import FedAvg
from polypfed.strategies.fedavgm import FedAvgM
from polypfed.strategies.fedbuff import FedBuff
from polypfed.strategies.feddyn import FedDyn
from polypfed.strategies.fednova import FedNova
from polypfed.strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from polypfed.strategies.fedprox import FedProx
from polypfed.strategies.keepbest import KeepBest
from polypfed.strategies.parts import FedBN, FedPer
from polypfed.strategies.registry import Registry
from polypfed.strategies.scaffold import Scaffold

__all__ = [
    "Averaging",
    "Base",
    "Cohort",
    "Ditto",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBN",
    "FedBuff",
    "FedDyn",
    "FedNova",
    "FedPer",
    "FedProx",
    "FedYogi",
    "KeepBest",
    "LocalRule",
    "PlainRule",
    "Registry",
    "Scaffold",
    "State",
    "Strategy",
    "Wrapper",
]
