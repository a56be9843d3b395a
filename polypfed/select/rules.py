"""Which samples are worth training on.

Every rule is a frozen dataclass and a pure function of the scores and a generator: the same scores and the same seed
choose the same samples, on any machine and in any process. Confidences are compared in float32, the type detectors
answer in, so a confidence of exactly 0.7 is not below 0.7.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import ConfigError

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Score:
    """How the received model did on one sample.

    Args:
        image: id of the sample.
        confidence: of the best detection, in [0, 1]; 0 where nothing was detected, NaN where nobody looked.
        missed: true boxes without a detection, at the rule's operating point (`Judge`).
        false_alarms: detections without a true box, at the same point.
    """

    image: str
    confidence: float
    missed: int = 0
    false_alarms: int = 0


@dataclass(frozen=True)
class Judge:
    """Operating point at which misses and false alarms are counted: least confidence, least IoU of a hit."""

    confidence: float = 0.25
    iou: float = 0.5

    def __post_init__(self) -> None:
        _within("confidence", self.confidence)
        _within("iou", self.iou)


@runtime_checkable
class Selector(Protocol):
    """Chooses the samples of a round.

    Attributes:
        judge: where mistakes are counted; None for rules that need no labels, whose scoring is cheaper.
        blind: the rule looks at no score, so that none need be computed; confidences are then NaN.
    """

    @property
    def judge(self) -> Judge | None:
        """What else is asked of an image than its confidence; None where no label is looked at."""

    @property
    def blind(self) -> bool:
        """True where no confidence is looked at, so that nothing need be scored."""

    def choose(self, scores: Sequence[Score], rng: np.random.Generator) -> Mask:
        """Mask of the samples to train on: (len(scores),) bool, in the order given."""
        ...


@dataclass(frozen=True)
class All:
    """Every sample: plain federated training.

    >>> All().choose([Score("a", 0.9)], np.random.default_rng(0)).tolist()
    [True]
    """

    judge: ClassVar[None] = None
    blind: ClassVar[bool] = True

    def choose(self, scores: Sequence[Score], rng: np.random.Generator) -> Mask:
        """All of them."""
        return np.ones(len(scores), bool)


@dataclass(frozen=True)
class Below:
    """Samples whose best detection is strictly below `threshold` (DAVE Embedded Systems, ML-TN-009: 0.7).

    >>> seen = [Score("sure", 0.91), Score("edge", 0.7), Score("unsure", 0.69), Score("nothing", 0.0)]
    >>> Below(0.7).choose(seen, np.random.default_rng(0)).tolist()
    [False, False, True, True]
    """

    threshold: float = 0.7
    judge: ClassVar[None] = None
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _within("threshold", self.threshold)

    def choose(self, scores: Sequence[Score], rng: np.random.Generator) -> Mask:
        """Those below the threshold."""
        return np.asarray(_confidences(scores) < np.float32(self.threshold))


@dataclass(frozen=True)
class Random:
    """A random share of the samples, rounded to the nearest count: what a selector must beat at equal cost."""

    share: float
    judge: ClassVar[None] = None
    blind: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _within("share", self.share)

    def choose(self, scores: Sequence[Score], rng: np.random.Generator) -> Mask:
        """A fresh draw without replacement."""
        return _draw(np.ones(len(scores), bool), self.share, rng)


@dataclass(frozen=True)
class HardestK:
    """A budget: the `k` samples of least confidence; equal ones by image id.

    >>> HardestK(1).choose([Score("b", 0.2), Score("a", 0.2), Score("c", 0.9)], np.random.default_rng(0)).tolist()
    [False, True, False]
    """

    k: int
    judge: ClassVar[None] = None
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if type(self.k) is not int or self.k < 1:
            raise ConfigError(f"k must be a whole number of at least 1, got {self.k!r}", where="selector.k")

    def choose(self, scores: Sequence[Score], rng: np.random.Generator) -> Mask:
        """The k lowest."""
        confidence = _confidences(scores)
        hardest = sorted(range(len(scores)), key=lambda i: (confidence[i], scores[i].image))[: self.k]
        mask = np.zeros(len(scores), bool)
        mask[hardest] = True
        return mask


@dataclass(frozen=True)
class MissedOrFalse:
    """Label-aware: a missed box or a false alarm is hard, however confident; else `otherwise` decides.

    Args:
        threshold: detections below it do not count as found, nor as alarms.
        iou: least overlap of a hit.
        otherwise: rule for the samples without a mistake; None keeps none of them.

    >>> seen = [Score("missed one", 0.95, missed=1), Score("right and sure", 0.9), Score("right, unsure", 0.5)]
    >>> MissedOrFalse().choose(seen, np.random.default_rng(0)).tolist()
    [True, False, True]
    """

    threshold: float = 0.25
    iou: float = 0.5
    otherwise: Selector | None = field(default_factory=Below)
    blind: ClassVar[bool] = False

    @property
    def judge(self) -> Judge:
        """Where mistakes are counted."""
        return Judge(self.threshold, self.iou)

    def __post_init__(self) -> None:
        _within("threshold", self.threshold)
        _within("iou", self.iou)
        if self.otherwise is not None and self.otherwise.judge not in (None, self.judge):
            raise ConfigError("`otherwise` counts mistakes at another threshold or IoU", where="selector.otherwise")

    def choose(self, scores: Sequence[Score], rng: np.random.Generator) -> Mask:
        """Mistakes, and what `otherwise` chooses among all samples."""
        wrong = np.array([s.missed > 0 or s.false_alarms > 0 for s in scores], bool)
        return wrong if self.otherwise is None else wrong | self.otherwise.choose(scores, rng)


@dataclass(frozen=True)
class Replay:
    """What `inner` chooses, and a random `share` of the easy rest against forgetting."""

    inner: Selector = field(default_factory=Below)
    share: float = 0.1

    def __post_init__(self) -> None:
        _within("share", self.share)

    @property
    def judge(self) -> Judge | None:
        """As `inner`."""
        return self.inner.judge

    @property
    def blind(self) -> bool:
        """As `inner`."""
        return self.inner.blind

    def choose(self, scores: Sequence[Score], rng: np.random.Generator) -> Mask:
        """The union; every sample chosen by `inner` stays."""
        hard = self.inner.choose(scores, rng)
        return hard | _draw(~hard, self.share, rng)


def _confidences(scores: Sequence[Score]) -> NDArray[np.float32]:
    """float32, with anything that is not a number counted as no detection."""
    return np.nan_to_num(np.array([s.confidence for s in scores], np.float32), nan=0.0)


def _draw(pool: Mask, share: float, rng: np.random.Generator) -> Mask:
    candidates = np.flatnonzero(pool)
    mask = np.zeros(len(pool), bool)
    mask[rng.permutation(candidates)[: int(share * len(candidates) + 0.5)]] = True
    return mask


def _within(name: str, value: float) -> None:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ConfigError(f"{name} must lie in [0, 1], got {value!r}", where=f"selector.{name}")
