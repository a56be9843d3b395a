"""Keeping a site's update private: clip, noise, compress, encrypt, mask; keys and the privacy ledger.

Importing this loads numpy only; tenseal, cryptography and dp-accounting are loaded where they are used.
"""

from polypfed.privacy.dp import AdaptiveNorm
from polypfed.privacy.errors import BudgetExhausted, FrameRefused, IncompatiblePrivacy, KeyRefused
from polypfed.privacy.ledger import Ledger
from polypfed.privacy.modes import stages
from polypfed.privacy.pipeline import Pipeline, compose
from polypfed.privacy.stage import At, Clip, Encrypt, Mask, Noise, Quantise, RandomK, Stage, TopK

__all__ = [
    "AdaptiveNorm",
    "At",
    "BudgetExhausted",
    "Clip",
    "Encrypt",
    "FrameRefused",
    "IncompatiblePrivacy",
    "KeyRefused",
    "Ledger",
    "Mask",
    "Noise",
    "Pipeline",
    "Quantise",
    "RandomK",
    "Stage",
    "TopK",
    "compose",
    "stages",
]
