"""What a check raises, and how it compares."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from polypfed.core.errors import PolypfedError


class ContractError(PolypfedError, AssertionError):
    """A rule of the contract is broken.

    Attributes:
        rule: its name, which is that of the function in this room that checks it.
    """

    def __init__(self, problem: str, *, rule: str = "", where: object = "") -> None:
        super().__init__(f"{problem} (rule: {rule})" if rule else problem, where=where)
        self.rule, self.found = rule, problem


def demand(holds: bool, problem: str) -> None:
    """Raise a ContractError unless `holds`; `ruled` says of which rule."""
    if not holds:
        raise ContractError(problem)


@contextmanager
def ruled(rule: str, where: object) -> Iterator[None]:
    """Whatever goes wrong inside breaks `rule`."""
    try:
        yield
    except ContractError as error:
        raise ContractError(error.found, rule=rule, where=where) from None
    except Exception as error:
        raise ContractError(f"{type(error).__name__}: {error}", rule=rule, where=where) from error


def same(a: Any, b: Any) -> bool:
    """Equal to the bit: arrays, numbers, and mappings of them."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and bool(a == b)


def frozen(values: Mapping[str, Any]) -> dict[str, Any]:
    """Copies that cannot be written to."""
    out = {key: np.array(value) if isinstance(value, np.ndarray) else value for key, value in values.items()}
    for value in out.values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    return out
