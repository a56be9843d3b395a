"""Checks of the client half: plain arithmetic on vectors, of numpy and of torch alike."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from polypfed.core.model import Vector
from polypfed.core.pack import pack_state, unpack_state
from polypfed.strategies.base import Strategy, uploads, wants
from polypfed.testing.errors import demand, frozen, same

STEPS, LR = 3, 0.1
Convert = Callable[[Any], Any]


def sent(strategy: Strategy, x: Vector, y: Vector) -> dict[str, Vector]:
    """The extra vectors of a site that went from x to y in its first round."""
    rule, first = strategy.local_rule(), strategy.init(x)
    shared = {"gradient": np.zeros_like(x)} if wants(rule, "full_gradient") else {}
    rule.begin(x, {**strategy.broadcast(x, first), **shared}, {})
    return dict(rule.finish(x, y, 1, 1.0)[0])


def arithmetic(strategy: Strategy, size: int) -> None:
    """On numpy: shapes, dtypes, inputs left alone, the same again, and what is kept survives as bytes."""
    given = _inputs(strategy, size, {})
    for _ in range(2):  # a first round, and one with what the first one kept
        before = frozen(given)
        y, extra, kept = play(strategy, given)
        demand(same(before, given), "the rule changes what it is given")
        demand(same([y, extra, kept], [*play(strategy, given)]), "equal inputs, different results")
        demand(y.dtype == np.float32 and y.shape == (size,), f"direction gives {y.dtype}{y.shape}")
        lengths = {name: np.size(vector) for name, vector in extra.items()}
        demand(lengths == uploads(strategy, size), f"sends {lengths}, announces {uploads(strategy, size)}")
        for name, vector in extra.items():
            demand(vector.dtype == np.float32 and vector.ndim == 1, f"{name} is no float32 vector")
        demand(same(unpack_state(pack_state(kept)), dict(kept)), "what it keeps is no float32 vector")
        given = _inputs(strategy, size, kept)


def torch_alike(strategy: Strategy, size: int) -> None:
    """On torch tensors the same numbers come out; nothing is checked where torch is not installed."""
    if find_spec("torch") is None:
        return
    torch = import_module("torch")  # by name: this room must not need it

    def tensor(vector: Any) -> Any:
        return torch.from_numpy(np.array(vector)) if isinstance(vector, np.ndarray) else vector

    given = _inputs(strategy, size, {})
    for _ in range(2):
        plain, other = play(strategy, given), play(strategy, given, tensor)
        for mine, theirs in zip(plain, other, strict=True):
            pairs = [(mine, theirs)] if isinstance(mine, np.ndarray) else [(mine[k], theirs[k]) for k in mine]
            close = all(np.allclose(a, np.asarray(b), rtol=1e-5, atol=1e-6) for a, b in pairs)
            demand(close, "torch gives other numbers than numpy")
        given = _inputs(strategy, size, plain[2])


def play(strategy: Strategy, given: dict[str, Any], convert: Convert = lambda vector: vector) -> Any:
    """A few local steps down a quadratic: (y, extra vectors, kept vectors)."""
    rule = strategy.local_rule()
    parts: dict[str, dict[str, Any]] = {"shared": {}, "mine": {}}
    for key, value in given.items():
        section, _, name = key.partition(" ")
        if name:
            parts[section][name] = convert(value)
    x = convert(given["x"])
    rule.begin(x, parts["shared"], parts["mine"])
    y = x + 0
    for _ in range(STEPS):
        gradient = y - convert(given["target"])
        for vector in (gradient, y):
            if isinstance(vector, np.ndarray):
                vector.setflags(write=False)
        y = y - np.float32(LR) * rule.direction(gradient, y)
    extra, kept = rule.finish(x, y, STEPS, LR)
    return y, extra, kept


def _inputs(strategy: Strategy, size: int, kept: dict[str, Any]) -> dict[str, Any]:
    """What a site has at hand, by "shared NAME" and "mine NAME"; read-only."""
    rng = np.random.default_rng(size)
    x = rng.normal(size=size).astype(np.float32)
    shared = {key: rng.normal(size=size).astype(np.float32) for key in strategy.broadcast(x, strategy.init(x))}
    if wants(strategy.local_rule(), "full_gradient"):
        shared["gradient"] = rng.normal(size=size).astype(np.float32)
    found = {"x": x, "target": rng.normal(size=size).astype(np.float32)}
    return frozen(found | {f"shared {k}": v for k, v in shared.items()} | {f"mine {k}": v for k, v in kept.items()})
