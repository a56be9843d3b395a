from dataclasses import dataclass, replace

import numpy as np
import pytest

from polypfed.privacy.dp import AdaptiveNorm
from polypfed.privacy.stage import Clip, Encrypt, Mask, Noise, Quantise, RandomK, TopK
from polypfed.testing import check_stage

CLIP = Clip(2.0)
MOVING = Clip(1.0, adaptive=AdaptiveNorm(multiplier=0.5, planned=20))


@pytest.mark.parametrize(
    "stage",
    [
        CLIP,
        MOVING,
        Noise(1.5, where="site", clip=CLIP),
        Noise(1.5, clip=MOVING),
        RandomK(0.2),
        TopK(0.2),
        TopK(0.2, common=False),
        Quantise(),
        Encrypt(),
        Mask(),
    ],
    ids=str,
)
def test_every_stage_of_ours_keeps_the_contract(stage):
    check_stage(stage)


@dataclass(frozen=True)
class Wrong(RandomK):
    """A stage with one fault."""

    fault: str = ""

    def size(self, length):
        return length if self.fault == "size" else super().size(length)

    def forward(self, vector, state, at):
        if self.fault == "writes":
            vector *= 2
        if self.fault == "random":
            return super().forward(vector + np.random.default_rng().normal(size=vector.size), state, at)
        if self.fault == "length":
            return vector[vector > 0], {}
        if self.fault == "power":
            return super().forward(vector**3, state, at)
        out, state = super().forward(vector, state, at)
        if self.fault == "dtype":
            return out.astype(np.float64), state
        return out, {"residual": [1.0]} if self.fault == "state" else state

    def backward(self, mean, at, length):
        return mean if self.fault == "mean" else super().backward(mean, at, length)


@pytest.mark.parametrize("fault", ["size", "writes", "random", "length", "power", "dtype", "state", "mean"])
def test_every_fault_is_found(fault):
    check_stage(Wrong(0.5))
    with pytest.raises((AssertionError, ValueError)):
        check_stage(replace(Wrong(0.5), fault=fault))


def test_something_else_is_no_stage():
    with pytest.raises(AssertionError, match="lacks a part"):
        check_stage(object())  # type: ignore[arg-type]
