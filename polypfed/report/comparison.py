"""Several strategies beside each other, as figures: by run, and by strategy over its seeds."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import fmean, stdev
from typing import Any, Literal

from polypfed.core.errors import ConfigError
from polypfed.core.history import History, Row
from polypfed.detect.metrics import DetectionMetrics

OWN = "own_"  # before a metric: of a site's second, personal model
METRICS = tuple(f.name for f in fields(DetectionMetrics))
NAMES = {"map50": "mAP50", "map50_95": "mAP50-95", "f1": "F1"}


@dataclass(frozen=True)
class Goal:
    """What is compared: a metric of the evaluations after each round, and the value to reach.

    Raises:
        ConfigError: the metric is unknown, or the target not above 0 and at most 1.
    """

    metric: str = "map50"
    target: float = 0.6

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(
                f"{self.metric!r} is no metric", where="metric", remedy=f"Use one of {', '.join(METRICS)}"
            )
        if not 0 < self.target <= 1:
            raise ConfigError(f"{self.target!r} is not above 0 and at most 1", where="target")

    @property
    def title(self) -> str:
        """The metric as people write it."""
        return NAMES.get(self.metric, self.metric)


@dataclass(frozen=True)
class Outcome:
    """How one run of a strategy ended.

    Attributes:
        strategy: the name it goes by in this comparison; settings: the strategy as `Registry.describe` has it.
        status: "done", "refused" before round 1, or "failed" on the way; reason: why it is not done.
        rounds: that were asked for.
        rows: of its history.
    """

    strategy: str
    seed: int
    settings: Mapping[str, Any]
    status: Literal["done", "refused", "failed"]
    rounds: int
    reason: str = ""
    rows: Sequence[Row] = ()


@dataclass(frozen=True)
class Result:
    """The figures of one run. Those of a run that is not done are empty.

    Attributes:
        rounds_to_target: the first round whose model reaches the target; None if none does.
        final, sites: the metric after the last round, over all sites (weighted by validation images) and at each.
        cpu_s: of all sites' fits together: scoring, selection, training. Evaluation is the same for all, and not in it.
        bytes_up, bytes_down: mean of a round, all sites together.
        failures: updates that failed or were refused; with any, the budgets were not quite equal.
        by_round: the metric after each round, that of the initial model first.
    """

    strategy: str
    seed: int
    status: str
    reason: str
    metric: str
    target: float
    rounds: int
    settings: Mapping[str, Any]
    rounds_to_target: int | None = None
    final: float | None = None
    sites: Mapping[str, float] = field(default_factory=dict)
    cpu_s: float | None = None
    bytes_up: float | None = None
    bytes_down: float | None = None
    failures: int = 0
    by_round: Mapping[int, float] = field(default_factory=dict)

    @property
    def worst(self) -> float | None:
        """The metric at the site that has it worst."""
        return min(self.sites.values(), default=None)


def results(outcomes: Iterable[Outcome], goal: Goal) -> list[Result]:
    """One for each run; a second one, "NAME, own", if its sites also have models of their own (Ditto)."""
    return [
        _result(outcome, prefix, goal)
        for outcome in outcomes
        for prefix in ("", OWN)
        if not prefix or any(r["metric"] == prefix + goal.metric for r in outcome.rows)
    ]


def _result(outcome: Outcome, prefix: str, goal: Goal) -> Result:
    name = f"{outcome.strategy}, own" if prefix else outcome.strategy
    plain = Result(
        name, outcome.seed, outcome.status, outcome.reason, prefix + goal.metric, goal.target, outcome.rounds,
        outcome.settings,
    )  # fmt: skip
    if outcome.status != "done":
        return plain
    history = History([r for r in outcome.rows if r["round"] <= outcome.rounds])
    table, by_round = history.table(plain.metric), history.values(plain.metric)
    found = {
        "rounds_to_target": next((r for r, value in sorted(by_round.items()) if value >= goal.target), None),
        "final": by_round.get(outcome.rounds),
        "sites": {s: v for s in table.sites if s and (v := table.cells.get((outcome.rounds, s))) is not None},
        "cpu_s": sum(r["value"] for r in history.rows if r["site"] and r["metric"] == "cpu_s"),
        "bytes_up": _mean(history.values("bytes_up").values()),
        "bytes_down": _mean(history.values("bytes_down").values()),
        "failures": int(sum(history.values("failed").values())),
        "by_round": by_round,
    }
    return Result(**{f.name: getattr(plain, f.name) for f in fields(plain)} | found)


@dataclass(frozen=True)
class Line:
    """One strategy over its seeds: means over the runs that are done, and what kept the others from it."""

    strategy: str
    runs: tuple[Result, ...]

    @property
    def done(self) -> list[Result]:
        """The runs with figures."""
        return [r for r in self.runs if r.status == "done"]

    @property
    def rounds_to_target(self) -> list[float]:
        """Of each done run, in order of size; infinite where the target was not reached."""
        return sorted(math.inf if r.rounds_to_target is None else r.rounds_to_target for r in self.done)

    def mean(self, of: Callable[[Result], float | None]) -> float | None:
        """Over the done runs that have it."""
        return _mean(v for r in self.done if (v := of(r)) is not None)

    def at(self, site: str) -> float | None:
        """The final metric at one site, mean over the done runs."""
        return self.mean(lambda r: r.sites.get(site))

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the final metric; None with fewer than two runs."""
        values = [r.final for r in self.done if r.final is not None]
        return stdev(values) if len(values) > 1 else None

    @property
    def reasons(self) -> list[str]:
        """Why runs are not done, each reason once; and the updates that were lost."""
        found = [f"{self.strategy}, seed {r.seed}: {r.status}: {r.reason}" for r in self.runs if r.status == "failed"]
        refused = {r.reason: f"{self.strategy}: refused: {r.reason}" for r in self.runs if r.status == "refused"}
        lost = [f"{self.strategy}, seed {r.seed}: {r.failures} updates lost" for r in self.done if r.failures]
        lost = [] if self.runs[0].metric.startswith(OWN) else lost  # said of the shared model already
        return [*refused.values(), *found, *lost]


def lines(found: Iterable[Result]) -> list[Line]:
    """The results of each strategy together, in the order of their first appearance."""
    by_name: dict[str, list[Result]] = {}
    for result in found:
        by_name.setdefault(result.strategy, []).append(result)
    return [Line(name, tuple(runs)) for name, runs in by_name.items()]


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None
