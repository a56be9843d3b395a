"""Base of the strategies with a vector on the server that is the mean of what the sites keep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polypfed.core.errors import ConfigError
from polypfed.core.model import ModelSpec
from polypfed.core.reduce import Mean
from polypfed.strategies.base import Base, Cohort


@dataclass(frozen=True, kw_only=True)
class Controlled(Base):
    """SCAFFOLD's c and FedDyn's h: both follow the weights of the sites, which therefore are fixed for the run.

    Args:
        weights: of all sites by name; None weighs all alike.

    Raises:
        ConfigError: a weight is not above 0, or (before round 1) a site has none, or a name is no site's.
    """

    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and not isinstance(self.weights, Mapping):
            raise ConfigError(
                f"{self.weights!r} is not a weight for every site",
                where="weights",
                remedy="They are fixed for the run: give them by name, or None",
            )
        self._mean()

    def _mean(self) -> Mean:
        return Mean("uniform" if self.weights is None else self.weights)

    @property
    def reducer(self) -> Mean:
        """Even, or by the fixed weights. A rule that drops outliers would break the mean on the server."""
        return self._mean()

    def share(self, cohort: Cohort) -> float:
        """The part of all sites, by weight, that counted in the round; |S|/N if all weigh alike."""
        if self.weights is None:
            return len(cohort.clients) / cohort.population
        return sum(self.weights[name] for name in cohort.clients) / sum(self.weights.values())

    def check(self, spec: ModelSpec, sites: Sequence[str], asked: int) -> None:
        """Every site has a weight, and nobody else."""
        super().check(spec, sites, asked)
        if strangers := set(self.weights or ()) - set(sites):
            raise ConfigError("is no site", where=f"weights.{min(strangers)}", remedy=f"Sites: {', '.join(sites)}")
