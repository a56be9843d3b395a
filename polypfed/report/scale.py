"""Where a value stands on an axis, and how a number is written for a reader."""

import math
from collections.abc import Iterable

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values that cover [low, high] in about that many steps.

    >>> ticks(0.0, 0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(3, 3)
    [3.0, 3.2, 3.4, 3.6, 3.8, 4.0]
    """
    span = high - low if high > low else 1.0
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in _STEPS if s * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil((low + span) / step - 1e-9), first + 1)
    return [round(i * step, 12) for i in range(first, last + 1)]


def whole_ticks(values: Iterable[float], most: int = 10) -> list[int]:
    """Multiples of a round step between the lowest and the highest value, about `most` of them: the rounds of a run.

    >>> whole_ticks([0, 1, 2, 3]), whole_ticks([1, 40])
    ([0, 1, 2, 3], [5, 10, 15, 20, 25, 30, 35, 40])
    """
    kept = list(values)
    low, high = (math.floor(min(kept)), math.ceil(max(kept))) if kept else (0, 1)
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if (high - low) / s <= most)
    return list(range(-(-low // step) * step, high + 1, step))


def number(value: float | None, digits: int = 3) -> str:
    """A number, or an en dash where there is none.

    >>> number(0.5), number(None), number(12, 0)
    ('0.500', '–', '12')
    """
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share as a percentage.

    >>> percent(0.314), percent(None)
    ('31 %', '–')
    """
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.0f} %"


def signed(value: float) -> str:
    """A difference with its sign.

    >>> signed(0.0312), signed(-0.5)
    ('+0.031', '−0.500')
    """
    return f"{'−' if value < 0 else '+'}{abs(value):.3f}"


def duration(seconds: float | None) -> str:
    """Seconds as a reader says them.

    >>> duration(3.21), duration(192), duration(7260), duration(None)
    ('3.2 s', '3 min 12 s', '2 h 01 min', '–')
    """
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float | None) -> str:
    """Bytes in decimal units.

    >>> size(512), size(10_700_000), size(None)
    ('512 B', '10.7 MB', '–')
    """
    if count is None or not math.isfinite(count):
        return "–"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"
