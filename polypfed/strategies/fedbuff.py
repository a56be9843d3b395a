"""FedBuff: Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, 2022, Alg. 1."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from polypfed.core.errors import ConfigError
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.reduce import Mean
from polypfed.core.seeds import generator
from polypfed.core.settings import not_negative, rate, whole
from polypfed.strategies.base import Base, Cohort, State
from polypfed.strategies.fedavg import moved
from polypfed.strategies.registry import Registry


@Registry.add
@dataclass(frozen=True, kw_only=True)
class FedBuff(Base):
    """Asynchronous rounds: nobody waits for the slowest site.

        client   trains from version t_i of the model, whenever it is free;  sends D_i
        server   buffer += s(t - t_i) D_i ,  s(staleness) = 1 / sqrt(1 + staleness)
                 when K updates are in:  x <- x + eta/K buffer ;  t <- t + 1 ;  buffer = 0

    A server round is one full buffer. `Federation.per_round` sites, or all, are at work at any time; a site gives at
    most one update to a buffer. Who finishes when is played on a virtual clock, so that one seed gives one result.

    Args:
        buffer: K.
        eta: server learning rate.
        max_staleness: an update older than so many versions is dropped and recorded as late.
        spread: of the sites' pace on the virtual clock: standard deviation of the logarithm; 0 makes all equal.

    Differs: a site whose update is in the buffer waits for the next version. If sites fail and the buffer cannot be
    filled, what is in it counts, divided by its number, as long as the quorum is met.

    Raises:
        ConfigError: a setting is out of range, or there are fewer sites than the buffer takes.
    """

    asynchronous: ClassVar[bool] = True

    buffer: int = 10
    eta: float = 1.0
    max_staleness: int = 10
    spread: float = 0.5

    def __post_init__(self) -> None:
        whole("buffer", self.buffer, 1)
        whole("max_staleness", self.max_staleness, 0)
        rate(eta=self.eta)
        not_negative(spread=self.spread)

    @property
    def reducer(self) -> Mean:
        """Even over the K of the buffer: the divisor is K, not the sum of the discounts."""
        return Mean("uniform")

    def check(self, spec: ModelSpec, sites: Sequence[str], asked: int) -> None:
        """A buffer takes one update of a site, so there must be K sites."""
        if len(sites) < self.buffer:
            raise ConfigError(
                f"the buffer takes {self.buffer} updates of different sites, there are {len(sites)}",
                where="buffer",
                remedy=f"Give at most {len(sites)}",
            )

    def discount(self, staleness: int) -> float:
        """s(staleness); 1 for an update from the present version."""
        return 1 / math.sqrt(1 + staleness)

    def duration(self, seed: int, site: str, version: int) -> float:
        """How long this site works on this version, on the virtual clock; 1 is the middle."""
        pace = generator(seed, "pace", site).standard_normal()
        luck = generator(seed, "luck", site, version).standard_normal()
        return math.exp(self.spread * (pace + 0.25 * luck))

    def step(self, x: Vector, state: State, mean: Mapping[str, Vector], cohort: Cohort) -> tuple[Vector, State]:
        """x + eta (buffer / K)."""
        return moved(x, self.eta, mean["delta"]), state
