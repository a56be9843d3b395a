"""total += weight * vector in one pass over memory where numba is installed; the same bits without it, in two."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

BLOCK = 1 << 17  # values that stay in the cache between a multiplication and its addition
WORTH = 1 << 20  # values from which compiling (a second, once; then from numba's cache) is worth it

Kernel = Callable[[Any, Any, Any, bool], None]


def axpy(total: np.ndarray[Any, Any], vector: np.ndarray[Any, Any], weight: float, first: bool) -> None:
    """total += weight * vector, or total = weight * vector if it is the first term.

    Each product is rounded, then each sum, in the type of `total`: no fused operation, whoever computes it.

    Args:
        total: (n,) float32 or float64, changed in place. vector: (n,) float32.
    """
    kernel = _compiled() if vector.size >= WORTH and vector.dtype == np.float32 else None
    if kernel is not None:
        kernel(total, vector, total.dtype.type(weight), first)
        return
    scale, scratch = total.dtype.type(weight), np.empty(min(BLOCK, vector.size), total.dtype)
    for start in range(0, vector.size, BLOCK):
        piece, part = vector[start : start + BLOCK], total[start : start + BLOCK]
        product = scratch[: piece.size]
        if piece.dtype != product.dtype:  # widening first is a third faster than a mixed multiplication
            np.copyto(product, piece)
            piece = product
        if weight != 1:  # the same bits, half the work for uniform weights in float32
            piece = np.multiply(piece, scale, out=product)
        np.add(total.dtype.type(0) if first else part, piece, out=part)


@cache
def _compiled() -> Kernel | None:
    if find_spec("numba") is None:
        return None
    import numba

    def add(total: Any, vector: Any, weight: Any, first: bool) -> None:
        zero = weight * 0  # a sum that begins with 0 has no negative zeros
        if first:
            for i in range(vector.size):
                total[i] = zero + weight * vector[i]
        else:
            for i in range(vector.size):
                total[i] += weight * vector[i]

    # No fastmath: the compiler may not fuse or reorder. Vectors of messages are read-only.
    array, flag = numba.types.Array, numba.types.boolean
    float32, float64 = numba.types.float32, numba.types.float64
    signatures = [
        numba.types.void(array(kind, 1, "C"), array(float32, 1, "C", readonly=ro), kind, flag)
        for kind in (float32, float64)
        for ro in (True, False)
    ]
    kernel: Kernel = numba.njit(signatures, cache=True)(add)
    return kernel
