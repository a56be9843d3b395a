"""The compiled sum has the bits of the plain one, for any values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.core import axpy as module
from polypfed.core.axpy import axpy

pytest.importorskip("numba")


def both(dtype: str, weight: float, first: bool, seed: int, size: int) -> tuple[bytes, bytes]:
    """The sum by each way."""
    draw = np.random.default_rng(seed)
    vector = (draw.standard_normal(size) * 10.0 ** draw.integers(-20, 20, size)).astype(np.float32)
    vector.setflags(write=False)
    start = (draw.standard_normal(size) * 10.0 ** draw.integers(-20, 20, size)).astype(dtype)
    start[0] = np.nan if first else start[0]  # memory that nobody has written yet
    plain, fast = start.copy(), start.copy()
    axpy(plain, vector, weight, first)
    kernel = module._compiled()
    assert kernel is not None
    kernel(fast, vector, fast.dtype.type(weight), first)
    return plain.tobytes(), fast.tobytes()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["float32", "float64"]), st.floats(1e-6, 1e7), st.booleans(), st.integers(0, 10**6))
def test_the_same_bits(dtype: str, weight: float, first: bool, seed: int) -> None:
    plain, fast = both(dtype, weight, first, seed, 1000)
    assert plain == fast


def test_large_vectors_take_the_compiled_way_and_a_missing_numba_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    size = module.WORTH + 3
    vector, compiled, plain = np.linspace(-1, 1, size, dtype=np.float32), np.ones(size), np.ones(size)
    called: list[int] = []
    kernel = module._compiled()
    assert kernel is not None
    monkeypatch.setattr(module, "_compiled", lambda: lambda *given: (called.append(1), kernel(*given)))
    axpy(compiled, vector, 3.0, False)
    assert called
    monkeypatch.setattr(module, "_compiled", lambda: None)
    axpy(plain, vector, 3.0, False)
    assert compiled.tobytes() == plain.tobytes()
