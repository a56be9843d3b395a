"""Euclidean distances between long float32 vectors: in blocks, summed in float64, never negative."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from polypfed.core.model import Vector

Wide = NDArray[np.float64]

BLOCK = 1 << 15  # values of a row
NEAR = 0.05


def pairwise(rows: Sequence[Vector]) -> Wide:
    """Squared distances between m rows of (P,), as (m, m).

    By |a|^2 + |b|^2 - 2ab with float32 products. Where that cancels, because two rows are much nearer to each other
    than to the origin, and where it overflows, the pair's differences are squared and summed instead.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        products = _products(rows)
        squares = np.diag(products)
        sums = squares[:, None] + squares
        found = sums - 2 * products
        for i, j in np.argwhere(np.triu(~(found > NEAR * sums), k=1)):
            found[i, j] = found[j, i] = apart(rows[i], rows[j])
    np.fill_diagonal(found, 0)
    for i, j in np.argwhere(np.triu(found == 0, k=1)):  # equal rows are equally far from the others, to the last bit
        found[j] = found[:, j] = found[i]
    return found


def cosines(rows: Sequence[Vector]) -> Wide:
    """Of the angles between m rows of (P,), as (m, m), to some six digits; no row may be all zeros."""
    return _products(rows, [norm(row) for row in rows])


def _products(rows: Sequence[Vector], lengths: Sequence[float] | None = None) -> Wide:
    """Of every two rows, over their lengths if given: float32 within a block, float64 beyond."""
    total, block = np.zeros((len(rows), len(rows))), np.empty((len(rows), BLOCK), np.float32)
    for piece in _blocks(rows[0].size):
        values = block[:, : piece.stop - piece.start]
        for i, row in enumerate(rows):
            if lengths is None:
                np.copyto(values[i], row[piece])
            else:  # divided in float64: a length may be beyond float32
                np.divide(row[piece], np.float64(lengths[i]), out=values[i], casting="same_kind")
        total += values @ values.T
    return total


def apart(a: Vector, b: Vector) -> float:
    """The squared distance of two vectors, (P,); all of it in float64."""
    total, wide = 0.0, np.empty((2, BLOCK))
    for piece in _blocks(a.size):
        left, right = wide[:, : piece.stop - piece.start]
        np.copyto(left, a[piece])
        np.copyto(right, b[piece])
        np.subtract(left, right, out=left)
        total += float(np.add.reduce(np.multiply(left, left, out=left)))
    return total


def norm(vector: Vector) -> float:
    """The Euclidean norm of (P,), with the same bits on every machine: no BLAS, whose order of additions differs."""
    total, wide = 0.0, np.empty(BLOCK)
    for piece in _blocks(vector.size):
        values = wide[: piece.stop - piece.start]
        np.copyto(values, vector[piece])
        total += float(np.add.reduce(np.multiply(values, values, out=values)))
    return float(np.sqrt(total))


def combined(rows: Sequence[Vector], shares: Wide) -> tuple[Vector, Wide]:
    """z = sum of shares[i] * rows[i] as (P,) float32, and how far each row is from z before that was rounded, (m,).

    One pass over the rows; the same bits on every machine.
    """
    out, total, wide = np.empty(rows[0].size, np.float32), np.empty(BLOCK), np.empty(BLOCK)
    squares = np.zeros(len(rows))
    for piece in _blocks(out.size):
        centre, values = total[: piece.stop - piece.start], wide[: piece.stop - piece.start]
        centre.fill(0)
        for row, share in zip(rows, shares, strict=True):
            np.copyto(values, row[piece])
            np.add(centre, np.multiply(values, share, out=values), out=centre)
        for i, row in enumerate(rows):
            np.copyto(values, row[piece])
            np.subtract(values, centre, out=values)
            squares[i] += np.add.reduce(np.multiply(values, values, out=values))
        np.copyto(out[piece], centre, casting="same_kind")
    return out, np.sqrt(squares)


def _blocks(size: int) -> Iterator[slice]:
    for start in range(0, size, BLOCK):
        yield slice(start, min(start + BLOCK, size))
