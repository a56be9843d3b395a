"""Memory that is free and still ours."""

import ctypes
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Return free memory to the operating system, where the C library is glibc; elsewhere do nothing.

    glibc keeps what lies below the last block in use, so a long run with large and small blocks holds more and more of
    what nobody uses. About half a millisecond.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; TypeError: Windows
        return None
    return found
