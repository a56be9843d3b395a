"""Ditto: Li et al., Ditto: Fair and Robust Federated Learning Through Personalization, 2021, Alg. 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from polypfed.core.errors import ConfigError
from polypfed.core.messages import Evaluation, Task, Update
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.pack import pack_state, unpack_inner, unpack_state
from polypfed.core.seeds import derive
from polypfed.core.settings import not_negative
from polypfed.strategies.base import Base, Cohort, LocalRule, State, Strategy, Wrapper
from polypfed.strategies.fedavg import FedAvg
from polypfed.strategies.fedprox import ProxRule
from polypfed.strategies.registry import Registry

if TYPE_CHECKING:
    from polypfed.clients.base import Client


def _half() -> ConfigError:
    return ConfigError("is the client half of Ditto", where="strategy", remedy="Use Ditto")


class AnchoredRule(ProxRule):
    """v <- v - lr (g_i(v) + lambda (v - x)): the proximal rule around the shared model, from a start of its own."""

    def begin(self, x: Any, shared: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
        """The anchor is the shared model, not the model training starts from."""
        super().begin(shared["anchor"][: x.shape[0]], shared, mine)


@Registry.add
@dataclass(frozen=True, kw_only=True)
class Anchored(Base):
    """How a Ditto client trains its own model; no strategy for a federation."""

    strength: float

    def local_rule(self) -> LocalRule:
        """The rule above."""
        return AnchoredRule(self.strength)

    def check(self, spec: ModelSpec, sites: Sequence[str], asked: int) -> None:
        """There is no server half."""
        raise _half()

    def step(self, x: Vector, state: State, mean: Mapping[str, Vector], cohort: Cohort) -> tuple[Vector, State]:
        """There is no server half."""
        raise _half()


class DittoClient:
    """The client half: train the own model v_i near the shared one, then the shared one as ever."""

    def __init__(self, client: "Client", strategy: "Ditto") -> None:
        self.client, self.name, self._inner = client, client.name, strategy.inner.at_site(client)
        self._rule = Registry.describe(Anchored(strength=strategy.strength))
        self._own: Vector | None = None

    def own(self, x: Vector) -> Vector:
        """v_i; the shared model before this site has trained."""
        return x if self._own is None else self._own

    def fit(self, task: Task) -> Update:
        """Both models. The own one first: the site's records are then those of the shared one."""
        x, kept = task.vectors["model"], self._inner.state()
        start = self.own(x)
        config = {**task.config, "strategy": self._rule, "seed": derive(task.seed, "ditto")}
        self.client.restore(b"")
        alone = self.client.fit(Task(task.round, "fit", {"model": start, "anchor": x}, config))
        own = start + alone.vectors["delta"]
        self._inner.restore(kept)
        update = self._inner.fit(task)
        self._own = own
        spent = {k: v + update.metrics.get(k, 0.0) for k, v in alone.metrics.items() if k.endswith("_s")}
        return replace(update, metrics={**update.metrics, **spent})  # the seconds of both

    def evaluate(self, task: Task) -> Evaluation:
        """Metrics of the shared model; of the own model as "own_" and the metric's name."""
        shared = self._inner.evaluate(task)
        if "of" in task.config:  # another site's model is asked for
            return shared
        own = self.client.evaluate(replace(task, vectors={"model": self.own(task.vectors["model"])}))
        return replace(shared, metrics={**shared.metrics, **{f"own_{k}": v for k, v in own.metrics.items()}})

    def state(self) -> bytes:
        """The own model, and the inner client's state."""
        return pack_state({} if self._own is None else {"v": self._own}, self._inner.state())

    def restore(self, state: bytes) -> None:
        """The inverse of `state`."""
        self._own = unpack_state(state).get("v")
        self._inner.restore(unpack_inner(state))


@Registry.add
@dataclass(frozen=True, kw_only=True)
class Ditto(Wrapper):
    """Two models at a site: the shared one, and one of its own that is pulled towards it.

        client   v_i <- v_i - lr ( gradient of f_i at v_i + lambda (v_i - x) ) ;  then as the inner strategy
        server   as the inner strategy

    x is the model received in the round. v_i is never sent; local time doubles. Both models are evaluated.

    Args:
        strength: lambda; 0 is training alone, a large value gives the shared model.
        inner: what trains the shared model.

    Differs: v_i starts from the first model received and takes as many local steps as the shared model does.

    Raises:
        ConfigError: strength is below 0, or the inner strategy keeps parts of the model at the site.
    """

    strength: float = 0.1
    inner: Strategy = FedAvg()

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(strength=self.strength)

    def check(self, spec: ModelSpec, sites: Sequence[str], asked: int) -> None:
        """Both models are whole: parts that stay at the site are the business of a strategy around this one."""
        super().check(spec, sites, asked)
        if self.wire(spec) is not spec:
            raise ConfigError("FedBN and FedPer go outside: FedPer(inner=Ditto())", where="strategy.inner")

    def at_site(self, client: "Client") -> "Client":
        """The client with a second model."""
        return DittoClient(client, self)
