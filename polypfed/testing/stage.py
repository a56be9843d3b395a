"""Does a privacy stage keep the contract that pipelines rely on?"""

from typing import get_args

import numpy as np

from polypfed.privacy.stage import At, Kind, Stage


def check_stage(stage: Stage, length: int = 100, seed: int = 0) -> None:
    """Raise an AssertionError that says what is wrong.

    A stage is pure: it changes no argument, and the same arguments give the same result where noise is simulated. It
    sends as many float32 values as it says, at every site the same number; its state is float32 vectors and comes back;
    the mean gets its length back. What is linear and compresses gives twice the output for twice the input.
    """
    assert isinstance(stage, Stage), f"{stage!r} lacks a part of the Stage protocol"
    assert stage.kind in get_args(Kind), f"kind {stage.kind!r} has no place in the order"
    assert not (stage.sums and not stage.linear), "what hides single updates must let sums through"
    draw = np.random.default_rng(seed)
    vector, other, reference = (draw.normal(size=length).astype(np.float32) for _ in range(3))
    for given in (vector, other, reference):
        given.setflags(write=False)  # a stage that writes into its input raises here
    at = At(seed=seed, round=2, site="a", reference=reference, norm=1.0, simulate=True, count=3, planned=3)
    sent, state = stage.forward(vector, {}, at)
    again, _ = stage.forward(vector, {}, at)
    assert np.array_equal(sent, again), "the same arguments gave another result"
    assert sent.dtype == np.float32, f"sends {sent.dtype}, not float32"
    assert sent.shape == (stage.size(length),), f"sends {sent.shape}, `size` says {stage.size(length)}"
    assert stage.forward(other, {}, at)[0].shape == sent.shape, "the number of values sent depends on the data"
    for name, kept in state.items():
        assert getattr(kept, "dtype", None) == np.float32, f"state {name!r} is no float32 vector"
        kept.setflags(write=False)
    later, _ = stage.forward(other, state, at)
    assert later.shape == sent.shape, "with a state of its own it sends another number of values"
    mean = stage.backward(sent, at, length)
    assert mean.shape == (length,), "the mean does not get its length back"
    assert mean.dtype == np.float32, f"the mean becomes {mean.dtype}"
    if stage.linear and stage.kind == "compress":
        assert np.allclose(stage.forward(2 * vector, {}, at)[0], 2 * sent), "it says it is linear, and is not"
