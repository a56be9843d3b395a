"""KeepBest: the previous model stays unless validation improves."""

from dataclasses import dataclass

from polypfed.core.settings import not_negative
from polypfed.strategies.base import Scores, Strategy, Wrapper
from polypfed.strategies.fedavg import FedAvg
from polypfed.strategies.registry import Registry


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
        ConfigError: tolerance or veto is below 0.
    """

    metric: str = "map50"
    tolerance: float = 0.0
    veto: float | None = None
    inner: Strategy = FedAvg()

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(tolerance=self.tolerance, **{} if self.veto is None else {"veto": self.veto})

    def keeps(self, before: Scores, after: Scores) -> bool:
        """Is the new model better?"""
        sign, metric = (-1, self.metric[1:]) if self.metric.startswith("-") else (1, self.metric)
        both = [s for s in after if s in before and metric in after[s][0] and metric in before[s][0] and after[s][1]]
        if not both:
            return False
        gains = {s: sign * (after[s][0][metric] - before[s][0][metric]) for s in both}
        mean = sum(after[s][1] * gain for s, gain in gains.items()) / sum(after[s][1] for s in both)
        vetoed = self.veto is not None and min(gains.values()) < -self.veto
        return mean >= self.tolerance and not vetoed and self.inner.keeps(before, after)
