"""check_strategy: does a federated algorithm keep the contract the engine relies on?"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polypfed.clients.base import Client
from polypfed.core import checkpoint as checkpoints
from polypfed.core.checkpoint import Checkpoint
from polypfed.core.model import ModelSpec, Vector
from polypfed.strategies.base import Cohort, Strategy, uploads
from polypfed.strategies.registry import Registry
from polypfed.testing import rules, runs
from polypfed.testing.errors import demand, frozen, ruled, same
from polypfed.testing.sample import sample_sites

Sites = Callable[[], Sequence[Client]]
SIZE = 5


def check_strategy(
    strategy: Strategy, *, clients: Sites = sample_sites, rounds: int = 4, equals: Strategy | None = None
) -> None:
    """Check both halves by themselves, then whole runs.

    Args:
        strategy: what is checked.
        clients: makes fresh sites, the same ones at each call, for the runs; by default six of
            `polypfed.testing.sample_sites`.
        rounds: of each run, at least 2; half of them are done after a restart.
        equals: a strategy whose runs must come to the same model, to 1e-5.

    Raises:
        ContractError: naming the rule that is broken.

    Examples:
        >>> from polypfed.strategies import FedAvg, FedProx
        >>> check_strategy(FedProx(mu=0), equals=FedAvg())
    """
    name = type(strategy).__name__
    for check in (registry, state, step, direction, sends):
        with ruled(check.__name__, name):
            check(strategy)
    for rule_check in (rules.arithmetic, rules.torch_alike):
        with ruled(rule_check.__name__, name):
            rule_check(strategy, SIZE)
    for run_check in (runs.carries, runs.order, runs.no_work, runs.empty_rounds, runs.resumes):
        with ruled(run_check.__name__, name):
            run_check(strategy, clients, rounds)
    if equals is not None:
        with ruled("equal", name):
            runs.equal(strategy, equals, clients, rounds)


def registry(strategy: Strategy) -> None:
    """A task carries the strategy as JSON: it must be rebuilt from that, equal."""
    Registry.check(strategy)
    described = json.loads(json.dumps(Registry.describe(strategy)))
    demand(Registry.build(described) == strategy, "is not rebuilt from its own description")


def state(strategy: Strategy) -> None:
    """The state, at first and after a step, survives a checkpoint to the bit."""
    x, first, mean, cohort = _given(strategy)
    after = strategy.step(x, first, mean, cohort)[1]
    for when, value in (("init", first), ("step", after)):
        demand(isinstance(value, Mapping), f"{when} gives {type(value).__name__}, not a mapping")
        for key, item in value.items():
            plain = type(item) is float or type(item) is int
            vector = isinstance(item, np.ndarray) and item.dtype == np.float32 and item.ndim == 1
            demand(plain or vector, f"{key} after {when} is neither a number nor a float32 vector")
        demand(same(_kept(value), dict(value)), f"is not the same after a checkpoint, as {when} gave it")


def step(strategy: Strategy) -> None:
    """A pure function: equal inputs give equal bits, nothing given is written to, nothing hides on the object."""
    x, first, mean, cohort = _given(strategy)
    before, kept = Registry.describe(strategy), frozen({"x": x, **first, **{f"mean {k}": v for k, v in mean.items()}})
    moved, after = strategy.step(x, first, mean, cohort)
    demand(isinstance(moved, np.ndarray) and moved.dtype == np.float32, "the model is no float32 array")
    demand(moved.shape == x.shape, f"the model has shape {moved.shape}, not {x.shape}")
    demand(bool(np.isfinite(moved).all()), "the model is not finite")
    given = {"x": x, **first, **{f"mean {k}": v for k, v in mean.items()}}
    demand(same(kept, given), "changes what it is given")
    strategy.step(moved, after, mean, cohort)
    again = Registry.build(before).step(x, first, mean, cohort)
    demand(same(moved, again[0]) and same(dict(after), dict(again[1])), "equal inputs, different results")
    demand(Registry.describe(strategy) == before, "changes the strategy itself")


def direction(strategy: Strategy) -> None:
    """A delta is local minus global: a positive mean moves the model up, not down."""
    x, first, mean, cohort = _given(strategy)
    up = {**mean, "delta": np.ones_like(x)}
    moved, _ = strategy.step(x, first, up, cohort)
    demand(float(np.sum(moved - x)) > 0, "a positive mean delta does not increase the model")


def sends(strategy: Strategy) -> None:
    """What the server broadcasts are float32 vectors of the trainable length."""
    x, first, _, _ = _given(strategy)
    for key, vector in strategy.broadcast(x, first).items():
        demand(isinstance(vector, np.ndarray) and vector.dtype == np.float32, f"{key} is no float32 array")
        demand(vector.shape == x.shape, f"{key} has shape {vector.shape}, not {x.shape}")
        demand(key not in ("model", "gradient"), f"{key!r} already has a meaning")


def _given(strategy: Strategy) -> tuple[Vector, dict[str, Any], dict[str, Vector], Cohort]:
    """Inputs of a step, read-only: those of one site that did one step of size one and moved at random."""
    rng = np.random.default_rng(0)
    start = frozen({"x": rng.normal(size=SIZE).astype(np.float32)})["x"]
    first = frozen(dict(strategy.init(start)))
    delta = rng.normal(size=SIZE).astype(np.float32)
    extra = rules.sent(strategy, start, start + delta)
    names, lengths = set(extra), uploads(strategy, SIZE)
    demand(names == set(lengths), f"sends {sorted(names)} now and {sorted(lengths)} on zeros")
    names_of_sites = tuple(getattr(strategy, "weights", None) or ("site-00",))[:1]
    return start, first, frozen({"delta": delta, **extra}), Cohort(1, names_of_sites, (3,), 4)


def _kept(value: Mapping[str, Any]) -> dict[str, Any]:
    spec = ModelSpec.of({"x": np.zeros(SIZE, np.float32)})
    with tempfile.TemporaryDirectory(prefix="polypfed-") as folder:
        checkpoints.save(Path(folder), Checkpoint("run", {}, 1, spec, np.zeros(SIZE, np.float32), value))
        return dict(checkpoints.load(Path(folder)).state)
