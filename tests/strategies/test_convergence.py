"""SCAFFOLD and FedDyn on random heterogeneous quadratics: iterates, invariants, limits, and mutants that must fail."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed import Federation, Task
from polypfed.backends import Local
from polypfed.core import checkpoint as checkpoints
from polypfed.core.messages import Reply
from polypfed.core.pack import unpack_state
from polypfed.core.reduce import Mean
from polypfed.federation import Event
from polypfed.strategies import Cohort, FedAvg, FedDyn, PlainRule, Registry, Scaffold, Strategy
from polypfed.strategies.scaffold import ScaffoldRule
from tests.problems import Scripted, absent
from tests.strategies import oracles
from tests.strategies.oracles import Problem, random_problem, train

SHARES = {"s0": 1.0, "s1": 5.0, "s2": 2.0, "s3": 0.5, "s4": 3.0}
FIXED = np.array(list(SHARES.values()))
EVEN = np.ones(5)
CONTROLLED: list[tuple[Strategy, Any]] = [
    (Scaffold(), EVEN),
    (Scaffold(option="I"), EVEN),
    (Scaffold(weights=SHARES), FIXED),
    (Scaffold(option="I", weights=SHARES), FIXED),
    (FedDyn(alpha=1.0), EVEN),
    (FedDyn(alpha=1.0, weights=SHARES), FIXED),
]


def cohorts(problem: Problem, strategy: Strategy, rounds: int, per_round: int | None) -> list[list[int]]:
    """Who is drawn, read off a run."""
    drawn: dict[int, list[int]] = {}

    def note(event: Event) -> None:
        if event.kind == "fit":
            drawn.setdefault(event.round, []).append(int(event.site[1:]))

    fed = Federation(clients=problem.clients(), strategy=strategy, per_round=per_round, evaluate="off")
    fed.run(rounds, Local(), listen=note)
    return [drawn[r] for r in sorted(drawn)]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from([None, 1, 3]), st.sampled_from(CONTROLLED))
def test_the_iterates_are_those_of_the_box(seed: int, size: int, per_round: int | None, case: Any) -> None:
    """T04: the path, not only the limit, with unequal steps, weights and partial participation."""
    (strategy, weights), problem = case, random_problem(seed, size)
    drawn = cohorts(problem, strategy, 6, per_round)
    if isinstance(strategy, FedDyn):
        path = oracles.feddyn(problem, drawn, weights, strategy.alpha)
    else:
        path = oracles.scaffold(problem, drawn, weights, strategy.option)
    scale = max(1.0, float(np.abs(path).max()))
    found = train(6, problem.clients(), strategy, per_round=per_round)
    assert found == pytest.approx(path[-1], abs=1e-5 * scale)


@pytest.mark.parametrize("size", [2, 50])
@pytest.mark.parametrize(("strategy", "weights"), CONTROLLED)
def test_the_optimum_is_reached_whoever_takes_part(size: int, strategy: Strategy, weights: Any) -> None:
    problem = random_problem(size, size)
    optimum = problem.optimum(weights)
    found = train(250, problem.clients(), strategy, per_round=3)
    assert found == pytest.approx(optimum, abs=2e-5)
    gap = problem.fixed_point(weights) - optimum  # by how much theory says that FedAvg is off
    averaged = train(80, problem.clients(), FedAvg(reducer=Mean(dict(zip(problem.names, weights, strict=True)))))
    assert averaged - optimum == pytest.approx(gap, abs=5e-6)
    assert np.linalg.norm(gap) > 0.05


@pytest.mark.parametrize("per_round", [None, 1, 2])
@pytest.mark.parametrize(("strategy", "weights"), CONTROLLED)
def test_the_server_holds_the_mean_of_what_the_sites_keep(
    tmp_path: Path, strategy: Strategy, weights: Any, per_round: int | None
) -> None:
    """T02, T30: c = sum pi_i c_i and h = sum pi_i g_i over all sites, after every round."""
    problem = random_problem(3, 4)
    clients, pi, compared = problem.clients(), weights / weights.sum(), []
    theirs, ours = ("g_i", "h") if isinstance(strategy, FedDyn) else ("c_i", "c")

    def check(event: Event) -> None:
        if event.kind == "saved":
            kept = [unpack_state(c.state()).get(theirs, np.zeros(4, np.float32)) for c in clients]
            found = checkpoints.load(tmp_path / "checkpoint").state[ours]
            np.testing.assert_allclose(found, pi @ np.array(kept, float), atol=1e-5)
            compared.append(np.abs(kept).max())

    fed = Federation(clients=clients, strategy=strategy, per_round=per_round, evaluate="off")
    fed.run(8, Local(), tmp_path, check)
    assert len(compared) == 9
    assert compared[-1] > 0.1


@pytest.mark.parametrize("strategy", [FedDyn(alpha=1.0), Scaffold(option="I")], ids=lambda s: type(s).__name__)
def test_lost_updates_do_not_move_the_limit(strategy: Strategy) -> None:
    """T08: the site has stored its new state when its update disappears."""
    problem = random_problem(8, 3)

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield absent(name, task) if task.round % 2 and name == f"s{task.round % 5}" else reply

    fed = Federation(clients=problem.clients(), strategy=strategy, evaluate="off")
    history = fed.run(140, Scripted(script))
    assert history.model == pytest.approx(problem.optimum(), abs=1e-5)
    assert len(history.failures) == 70


@pytest.mark.parametrize("strategy", [Scaffold(eta=0.5), Scaffold(eta=0.5, option="I")])
def test_a_smaller_server_rate_leads_to_the_same_place(strategy: Strategy) -> None:
    problem = random_problem(9, 3)
    assert train(350, problem.clients(), strategy, per_round=2) == pytest.approx(problem.optimum(), abs=1e-5)


# --------------------------------------------------------------------------------------- mutants that must be caught


class FlippedRule(ScaffoldRule):
    """T01: c_i+ from y - x."""

    def finish(self, x: Any, y: Any, steps: int, lr: float) -> Any:
        own = self._gradient if self._gradient is not None else (y - x) / (steps * lr) - self._correction
        return {"dc": own - self._c_i}, {"c_i": own}


class FlippedStepRule(ScaffoldRule):
    """T01 for option I: the step subtracts c and adds c_i."""

    def direction(self, gradient: Any, y: Any) -> Any:
        return gradient - self._correction


class CommonStepsRule(ScaffoldRule):
    """T04: every site divides by the same K."""

    def finish(self, x: Any, y: Any, steps: int, lr: float) -> Any:
        return super().finish(x, y, 5, lr)


class LastRateRule(ScaffoldRule):
    """T05 in the small: the sum of the step sizes is taken for less than it is."""

    def finish(self, x: Any, y: Any, steps: int, lr: float) -> Any:
        return super().finish(x, y, steps, lr / 3)


class StartsFromTheModelRule(ScaffoldRule):
    """T10: c_i starts as the model."""

    def begin(self, x: Any, shared: Any, mine: Any) -> None:
        super().begin(x, shared, mine if mine else {"c_i": x + np.float32(1)})


class AlwaysFreshRule(PlainRule):
    """T06, T07: what the site kept is lost without a word."""

    def __init__(self, option: Any) -> None:
        self._rule = ScaffoldRule(option)
        self.linear, self.full_gradient = self._rule.linear, self._rule.full_gradient

    def begin(self, x: Any, shared: Any, mine: Any) -> None:
        self._rule.begin(x, shared, {})

    def direction(self, gradient: Any, y: Any) -> Any:
        return self._rule.direction(gradient, y)

    def finish(self, x: Any, y: Any, steps: int, lr: float) -> Any:
        return self._rule.finish(x, y, steps, lr)


RULES = {r.__name__: r for r in (FlippedRule, FlippedStepRule, CommonStepsRule, LastRateRule)}
RULES |= {r.__name__: r for r in (StartsFromTheModelRule, AlwaysFreshRule)}  # type: ignore[dict-item]


@Registry.add
@dataclass(frozen=True, kw_only=True)
class MutantScaffold(Scaffold):
    rule: str = ""
    whole_share: bool = False
    uneven_model: bool = False

    def local_rule(self) -> Any:
        return RULES[self.rule](self.option) if self.rule else super().local_rule()

    def share(self, cohort: Cohort) -> float:
        return 1.0 if self.whole_share else super().share(cohort)

    def step(self, x: Any, state: Any, mean: Any, cohort: Cohort) -> Any:
        moved, after = super().step(x, state, mean, cohort)
        return (x + np.float32(1.4) * mean["delta"] if self.uneven_model else moved), after


def off(strategy: Strategy, per_round: int | None = None, rounds: int = 80) -> float:
    """How far from the optimum, or from the box's path after 4 rounds if that is further; 9 if the run diverges."""
    problem = random_problem(11, 3)
    drawn = cohorts(problem, strategy, 4, per_round)
    path = oracles.scaffold(problem, drawn, EVEN, strategy.option)[-1]  # type: ignore[attr-defined]
    try:
        early = train(4, problem.clients(), strategy, per_round=per_round)
        with np.errstate(all="ignore"):
            late = train(rounds, problem.clients(), strategy, per_round=per_round, retries=0)
    except Exception:  # noqa: BLE001 - diverged: refused by the gate, or not finite
        return 9.0
    return float(max(np.abs(early - path).max(), np.abs(late - problem.optimum()).max()))


@pytest.mark.parametrize("option", ["I", "II"])
def test_the_measure_of_mutants_is_passed_by_the_original(option: Any) -> None:
    assert off(Scaffold(option=option)) < 1e-4
    assert off(Scaffold(option=option), per_round=2, rounds=200) < 1e-4


@pytest.mark.parametrize(
    "mutant",
    [
        MutantScaffold(rule="FlippedRule"),
        MutantScaffold(rule="FlippedStepRule", option="I"),
        MutantScaffold(rule="CommonStepsRule"),
        MutantScaffold(rule="LastRateRule"),
        MutantScaffold(rule="StartsFromTheModelRule"),
        MutantScaffold(rule="AlwaysFreshRule"),
        MutantScaffold(uneven_model=True),
    ],
    ids=lambda m: m.rule or "uneven",
)
def test_a_mutant_with_a_peer_s_defect_is_caught(mutant: Strategy) -> None:
    assert off(mutant) > 1e-2


def test_c_without_the_share_of_the_cohort_is_caught() -> None:
    """T02: with everybody there it cannot be seen, with two of five it is."""
    mutant = MutantScaffold(whole_share=True)
    assert off(mutant) < 1e-4
    assert off(mutant, per_round=2) > 1e-2


class HalfWeighted(Mean):
    """The delta by the fixed weights, everything else evenly."""

    def scale(self, update: Any) -> float:
        return 5 * SHARES[update.client] / sum(SHARES.values())


@Registry.add
@dataclass(frozen=True, kw_only=True)
class WeighsTheModelOnly(Scaffold):
    """T03."""

    @property
    def reducer(self) -> Mean:
        return HalfWeighted("uniform")


def test_weighing_only_the_model_gives_the_wrong_optimum() -> None:
    """T03: the limit is the optimum of the weights of the controls, so these must be the model's."""
    problem = random_problem(12, 3)
    even, weighted = problem.optimum(), problem.optimum(FIXED)
    assert np.abs(even - weighted).max() > 0.05
    assert train(150, problem.clients(), WeighsTheModelOnly()) == pytest.approx(even, abs=1e-5)
    assert train(150, problem.clients(), Scaffold(weights=SHARES)) == pytest.approx(weighted, abs=1e-5)
