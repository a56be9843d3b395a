"""Medians and trimmed means of many vectors, value by value, by a sorting network cut down to the wanted ranks.

A network compares fixed pairs of rows, so one np.minimum or np.maximum does a pair for a whole block of values.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from polypfed.core.model import Vector

BLOCK = 1 << 15  # values: each row of a block is read from memory once, the rest happens in the cache
SCRATCH = 1 << 22  # values in the scratch of all rows together


def median(rows: Sequence[Vector]) -> Vector:
    """The median of each value; of an even number of rows the mean of the two in the middle.

    rows: at least one, (P,) float32 and finite; they are not changed. The bits are those of np.median, but a zero
    never has a sign: which of -0 and 0 is the smaller differs between machines.
    """
    count = len(rows)
    return _selected(rows, (count - 1) // 2, count // 2 + 1, _middle)


def trimmed_mean(rows: Sequence[Vector], cut: int) -> Vector:
    """The mean of each value without its `cut` smallest and `cut` largest, summed in float64.

    rows: more than 2 * cut, (P,) float32 and finite; they are not changed.
    """
    return _selected(rows, cut, len(rows) - cut, _mean)


Finish = Callable[[Sequence[Vector], Vector], None]


def _selected(rows: Sequence[Vector], low: int, high: int, finish: Finish) -> Vector:
    """`finish` on the values of ranks low to high - 1, block by block."""
    steps = program(len(rows), low, high)
    size, block = rows[0].size, max(1, min(BLOCK, SCRATCH // len(rows), rows[0].size))
    scratch = np.empty((steps.scratch, block), np.float32)
    out = np.empty(size, np.float32)
    for start in range(0, size, block):
        part = out[start : start + block]
        slots = [row[start : start + block] for row in rows]
        slots += list(scratch[:, : part.size])
        for smaller, a, b, target in steps.compare:
            (np.minimum if smaller else np.maximum)(slots[a], slots[b], out=slots[target])
        finish([slots[i] for i in steps.wanted], part)
    return out


def _middle(found: Sequence[Vector], out: Vector) -> None:
    np.add(found[0], found[1] if len(found) == 2 else np.float32(0), out=out)
    if len(found) == 2:
        np.multiply(out, np.float32(0.5), out=out)
        np.add(out, np.float32(0), out=out)  # no -0


def _mean(found: Sequence[Vector], out: Vector) -> None:
    total, wide = np.empty((2, out.size))
    np.copyto(total, found[0])
    for values in found[1:]:
        np.copyto(wide, values)  # adding float32 to float64 at once takes longer than widening first
        np.add(total, wide, out=total)
    np.divide(total, len(found), out=total)
    np.copyto(out, total, casting="same_kind")
    np.add(out, np.float32(0), out=out)


class Program(NamedTuple):
    """What to do with a block of every row; slots are the rows, then `scratch` more."""

    compare: tuple[tuple[bool, int, int, int], ...]
    """In turn: smaller or larger, of these two slots, into that one."""
    wanted: tuple[int, ...]
    scratch: int


@cache
def program(count: int, low: int, high: int) -> Program:
    """The comparisons that bring the values of ranks low to high - 1 of `count`, in any order, into `wanted`."""
    place, free, steps = list(range(count)), list[int](), list[tuple[bool, int, int, int]]()
    slots = count

    def take() -> int:
        nonlocal slots
        slots += not free
        return free.pop() if free else slots - 1

    for a, b, smaller, larger in _pruned(count, low, high):
        old = place[a], place[b]
        mine = [slot for slot in old if slot >= count]  # rows are only read
        if smaller and larger:
            place[a] = take()
            steps.append((True, *old, place[a]))
            place[b] = mine.pop() if mine else take()
            steps.append((False, *old, place[b]))
        else:
            target = mine.pop() if mine else take()
            steps.append((smaller, *old, target))
            place[a if smaller else b] = target
        free += mine
    return Program(tuple(steps), tuple(place[low:high]), slots - count)


def _pruned(count: int, low: int, high: int) -> list[tuple[int, int, bool, bool]]:
    """The pairs of the network, each with whether its smaller and its larger value matter to what is wanted.

    From the end backwards: a value matters if it is wanted or if a later pair needs it; and a pair of wanted values
    that no later pair touches need not be put in order.
    """
    needed, touched, kept = set(range(low, high)), set[int](), list[tuple[int, int, bool, bool]]()
    for a, b in reversed(network(count)):
        unordered = low <= a and b < high and not {a, b} & touched
        if unordered or not {a, b} & needed:
            continue
        kept.append((a, b, a in needed, b in needed))
        needed |= {a, b}
        touched |= {a, b}
    return kept[::-1]


def network(count: int) -> list[tuple[int, int]]:
    """Pairs (a, b), a < b: putting each in order, one after the other, sorts `count` values.

    The pairwise sorting network (Parberry, The Pairwise Sorting Network, 1992): cut down to some ranks it is smaller
    than Batcher's of the same size (Codish, Zazon-Ivry, Pairwise Networks are Superior for Selection, 2010).
    """
    size = 1 << max(0, count - 1).bit_length()
    return [(a, b) for a, b in _pairwise(range(size)) if b < count]  # the missing values count as infinite


def _pairwise(lines: range) -> list[tuple[int, int]]:
    if len(lines) < 2:
        return []
    pairs = [*zip(lines[::2], lines[1::2], strict=True), *_pairwise(lines[::2]), *_pairwise(lines[1::2])]
    step = len(lines) // 2
    while step >= 2:
        pairs += [(lines[i], lines[i + step - 1]) for i in range(1, len(lines) - step + 1, 2)]
        step //= 2
    return pairs
