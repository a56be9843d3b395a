"""KeepBest: the previous model stays unless validation improves."""

from dataclasses import dataclass

from polypfed.core.errors import ConfigError
from polypfed.core.settings import not_negative
from polypfed.strategies.base import Scores, Strategy, Wrapper
from polypfed.strategies.fedavg import FedAvg
from polypfed.strategies.registry import Registry

_ROUNDING = 1e-12  # a mean of equal scores is not worse because its sum was rounded


@Registry.add
@dataclass(frozen=True, kw_only=True)
class KeepBest(Wrapper):
    """A gate behind any strategy.

        x' = what the inner strategy makes of the round ;   M(x) = sum_i v_i M_i(x) / sum_i v_i
        x' stays if  M(x') >= M(x) + tolerance  and no site loses more than `veto` ;  else x, the strategy's state
        and what the sites kept go back to where they were before the round

    v_i: validation examples of site i. Both models are compared on the sites that scored both; if there is none, the
    previous model stays. Rounds have different seeds, so the next try differs. To choose the best model without
    touching the training, `Federation(keep_best=...)` is enough.

    Args:
        metric: what counts; "-loss" means that lower is better.
        tolerance: how much better it must be; 0 lets an equal one pass, and on few examples noise as well.
        veto: largest loss of any single site; None asks only for the mean.
        inner: the strategy behind the gate.

    Raises:
        ConfigError: tolerance or veto is below 0, or (in round 0) no site with validation examples has the metric.
    """

    metric: str = "map50"
    tolerance: float = 0.0
    veto: float | None = None
    inner: Strategy = FedAvg()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.metric, str) or not self.metric.removeprefix("-"):
            raise ConfigError(f"{self.metric!r} is not the name of a metric", where="metric")
        not_negative(tolerance=self.tolerance, **{} if self.veto is None else {"veto": self.veto})

    def keeps(self, before: Scores, after: Scores) -> bool:
        """Is the new model better?"""
        sign, metric = -1 if self.metric.startswith("-") else 1, self.metric.removeprefix("-")
        both = [s for s in after if s in before and metric in after[s][0] and metric in before[s][0] and after[s][1]]
        if not both:
            return False
        gains = {s: sign * (after[s][0][metric] - before[s][0][metric]) for s in both}
        mean = sum(after[s][1] * gain for s, gain in gains.items()) / sum(after[s][1] for s in both)
        vetoed = self.veto is not None and min(gains.values()) < -self.veto - _ROUNDING
        return mean >= self.tolerance - _ROUNDING and not vetoed and self.inner.keeps(before, after)

    def check_scores(self, scores: Scores) -> None:
        """Refuse, in round 0, to wait for a metric that no site reports.

        Raises:
            ConfigError: sites have scored the initial model, none of them by this metric on any example.
        """
        metric, found = self.metric.removeprefix("-"), {m for metrics, n in scores.values() if n for m in metrics}
        if scores and metric not in found:
            raise ConfigError(
                f"no site with validation examples reports {metric!r}",
                where="strategy.metric",
                remedy=f"They report: {', '.join(sorted(found)) or 'nothing'}",
            )
