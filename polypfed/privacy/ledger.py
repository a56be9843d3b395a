"""The privacy ledger: what has been released, what it cost, and the stop before it costs too much."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from polypfed.core.errors import CheckpointError, ConfigError
from polypfed.core.extras import require
from polypfed.core.settings import positive, whole
from polypfed.privacy.errors import BudgetExhausted

_LARGE = [float(x) for x in (*range(64, 128, 4), *range(128, 512, 16), 512, 1024)]
_FRACTIONS = [1 + x / 40 for x in range(1, 40)] + [x / 10 for x in range(20, 110)]
ORDERS = _FRACTIONS + [float(x) for x in range(11, 64)] + _LARGE
"""Of the Renyi divergences, as accountants commonly take them."""

SAMPLED_ORDERS = [x / 10 for x in range(20, 60)] + [float(x) for x in range(6, 64)] + _LARGE
"""None below 2 where releases are sampled: their series hardly converge there. Any choice of orders is valid."""


@dataclass(frozen=True)
class Ledger:
    """Releases of the Gaussian mechanism, accounted by Renyi DP (dp-accounting's).

    A ledger never loses an entry: `charge` gives a longer one, and a run that goes back to an older model keeps it.

    Args:
        epsilon: the budget; math.inf only counts.
        delta: of (epsilon, delta); smaller than 1 / number of people protected.
        entries: (sampling rate, noise multiplier, releases).

    Raises:
        ConfigError: epsilon or delta is out of range.

    Examples:
        >>> ledger = Ledger(epsilon=8.0, delta=1e-5)
        >>> ledger.charged(multiplier=4.0).charged(multiplier=4.0).entries  # `charge` also refuses to overspend
        ((1.0, 4.0, 2),)
    """

    epsilon: float
    delta: float
    entries: tuple[tuple[float, float, int], ...] = ()

    def __post_init__(self) -> None:
        if self.epsilon != math.inf:
            positive(epsilon=self.epsilon)
        positive(delta=self.delta)
        if self.delta >= 1:
            raise ConfigError(f"{self.delta!r} is not below 1", where="delta")
        for rate, multiplier, count in self.entries:
            positive(sampling=rate, multiplier=multiplier)
            whole("releases", count, 1)
            if rate > 1:
                raise ConfigError(f"{rate!r} is not at most 1", where="sampling")

    @property
    def spent(self) -> float:
        """Epsilon of all releases so far at `delta`."""
        if not self.entries:
            return 0.0
        dp: Any = require("dp_accounting", extra="dp")
        rdp: Any = require("dp_accounting.rdp", extra="dp")
        accountant = rdp.RdpAccountant(ORDERS if all(rate == 1 for rate, *_ in self.entries) else SAMPLED_ORDERS)
        for rate, multiplier, count in self.entries:
            event = dp.GaussianDpEvent(multiplier)
            accountant.compose(event if rate == 1 else dp.PoissonSampledDpEvent(rate, event), count)
        return float(accountant.get_epsilon(self.delta))

    def charged(self, multiplier: float, sampling: float = 1.0, releases: int = 1) -> "Ledger":
        """The ledger with these releases, whatever they cost.

        Args:
            multiplier: z.
            sampling: the chance of a site to take part, if it is drawn at random and in secret; else 1.
        """
        last = self.entries[-1:]
        if last and last[0][:2] == (sampling, multiplier):
            return replace(self, entries=(*self.entries[:-1], (sampling, multiplier, last[0][2] + releases)))
        return replace(self, entries=(*self.entries, (sampling, multiplier, releases)))

    def charge(self, multiplier: float, sampling: float = 1.0, releases: int = 1) -> "Ledger":
        """The ledger with these releases in it; keep it before anything is released.

        Raises:
            BudgetExhausted: they would cost more than is left; nothing may be released then.
        """
        longer = self.charged(multiplier, sampling, releases)
        if (cost := longer.spent) > self.epsilon:
            raise BudgetExhausted(
                f"one more release would cost epsilon {cost:.3f} of {self.epsilon:.3f}, {self.spent:.3f} is spent",
                where="privacy budget",
                remedy="The run ends here; the model of the last round is within the budget",
            )
        return longer

    def affordable(self, multiplier: float, sampling: float = 1.0, most: int = 100_000) -> int:
        """How many such releases are left, up to `most`."""
        low, high = 0, 1
        while high <= most and self.charged(multiplier, sampling, high).spent <= self.epsilon:
            low, high = high, high * 2
        high = min(high, most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            if self.charged(multiplier, sampling, middle).spent <= self.epsilon:
                low = middle
            else:
                high = middle
        return low

    def to_json(self) -> dict[str, Any]:
        """State for the checkpoint."""
        epsilon = None if self.epsilon == math.inf else self.epsilon
        return {"epsilon": epsilon, "delta": self.delta, "entries": [list(e) for e in self.entries]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Ledger":
        """The inverse of `to_json`.

        Raises:
            CheckpointError: the value is no ledger.
        """
        try:
            entries = tuple((float(q), float(z), count) for q, z, count in value["entries"])
            epsilon = math.inf if value["epsilon"] is None else float(value["epsilon"])
            return cls(epsilon, float(value["delta"]), entries)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"is no privacy ledger ({error})", where="ledger") from None

    def continues(self, earlier: "Ledger") -> bool:
        """Does this ledger hold all that `earlier` holds? A resumed run whose ledger does not is refused."""
        if len(self.entries) < len(earlier.entries):
            return False
        pairs = list(zip(earlier.entries, self.entries, strict=False))
        same = all(a == b for a, b in pairs[:-1])
        return same and (not pairs or (pairs[-1][0][:2] == pairs[-1][1][:2] and pairs[-1][0][2] <= pairs[-1][1][2]))
