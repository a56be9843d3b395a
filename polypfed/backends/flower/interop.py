"""Half of ours with half of Flower's.

`InFlower(strategy)`: a polypfed strategy in a user's own Flower app.
    Kept: the gate, the reducer and the server half, in float64 and in order of node id.
    Lost: the quorum at aggregation, the deadline, checkpoints (take `state` yourself), seeds per round and site.
        Flower's own loop takes all replies in one call, so over HTTP one broken upload holds up the others.
    Refused: a strategy with a client half (FedProx, SCAFFOLD, FedNova), for a ClientApp of Flower's does not run it.

`over(grid, arrays)`: a user's own ClientApp under our engine.
    Kept: everything at the server: gate, quorum, deadline, history, checkpoint and resume.
    Lost: state at the site; the reply says neither run nor round, so Flower's own pairing of messages is relied on.
    Refused: a strategy that sends a second vector, for the same reason as above.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowersFedAvg

from polypfed.backends.flower.grid import OverGrid
from polypfed.backends.flower.records import ARRAYS, CONFIG, EXAMPLES, METRICS, read_array
from polypfed.core.errors import ConfigError, LayoutError, MessageError, Refused
from polypfed.core.gate import Gate, default_max_norm
from polypfed.core.messages import Evaluation, Failure, Reply, Task, Update
from polypfed.core.model import ModelSpec, Vector, shared
from polypfed.core.reduce import BUFFERS, InOrder
from polypfed.strategies.base import Cohort, PlainRule, State, Strategy


def plain(strategy: Strategy) -> None:
    """Raise a ConfigError if the strategy needs more of a client than to train and to send its model."""
    x = np.zeros(1, np.float32)
    if type(strategy.local_rule()) is not PlainRule or strategy.broadcast(x, strategy.init(x)):
        raise ConfigError(
            "has a client half, which a ClientApp of Flower's does not run",
            where=type(strategy).__name__,
            remedy="Run it with polypfed's own clients: pf.backends.Flower, or a deployment",
        )


class InFlower(FlowersFedAvg):
    """A polypfed strategy as a strategy of `flwr.serverapp`.

    Replies are those of any ClientApp: one ArrayRecord of the local model, `num-examples` among the metrics. A reply
    that does not pass the gate is left out and logged; it does not end the run.

    Args:
        strategy: one without a client half, such as `FedAvgM`, `FedAdam`, or `FedAvg` with a robust reducer.
        buffers: names of the arrays that no optimiser moves; they are averaged.
        settings: of Flower's own FedAvg, which samples the nodes.

    Attributes:
        state: the strategy's state; set it, with `start`'s `initial_arrays`, to go on where a run ended.
        refused: what did not pass: (round, node, reason).

    Raises:
        ConfigError: the strategy has a client half.
    """

    def __init__(self, strategy: Strategy, buffers: Iterable[str] = (), **settings: Any) -> None:
        plain(strategy)
        super().__init__(**settings)
        self.strategy, self.buffers = strategy, tuple(buffers)
        self.state: State | None = None
        self.refused: list[tuple[int, str, str]] = []
        self._now: ArrayRecord = ArrayRecord()
        self._asked = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As Flower's FedAvg; the config is a copy."""
        self._now = arrays
        messages = list(super().configure_train(server_round, arrays, ConfigRecord(dict(config)), grid))
        self._asked = len(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Gate, reduce, step."""
        spec, x, others = _model(self._now, self.buffers)
        stock = Stock(spec, self.arrayrecord_key, self.weighted_by_key)
        task = Task(server_round, "fit", {"model": x})
        found = {f"node-{r.metadata.src_node_id}": r for r in replies if r.has_content()}
        gate = Gate("", server_round, frozenset(found), {"delta": spec.size}, default_max_norm(x))
        lengths = {"delta": spec.boundary, BUFFERS: spec.size - spec.boundary}
        queue = InOrder(self.strategy.reducer.start(lengths), list(found))
        weights: dict[str, int] = {}
        for name in sorted(found):
            update = self._passed(stock.unpack(found[name].content, name, task), gate)
            if update is not None:
                weights[name] = update.weight
                queue.add(_sections(update, spec.boundary))
        weights = {name: weight for name, weight in weights.items() if weight}
        if not weights:
            return None, None
        mean = queue.result()
        for name in queue.refused():
            self.refused.append((server_round, name, "opposed"))
            del weights[name]
        buffers = x[spec.buffers] + mean.pop(BUFFERS)
        state = self.strategy.init(x[spec.trainable]) if self.state is None else self.state
        cohort = Cohort(server_round, tuple(weights), tuple(weights.values()), max(self._asked, len(found)))
        moved, self.state = self.strategy.step(x[spec.trainable], shared(state), mean, cohort)
        metrics = self.train_metrics_aggr_fn([found[n].content for n in weights], self.weighted_by_key)
        return _record(spec, np.concatenate([moved, buffers]), others, self._now), metrics

    def _passed(self, reply: Reply, gate: Gate) -> Update | None:
        if isinstance(reply, Update):
            try:
                return gate.admit(reply)
            except Refused as refusal:
                reply = Failure(reply.client, gate.round, refusal.reason, str(refusal))
        self.refused.append((gate.round, reply.client, getattr(reply, "reason", "header")))
        return None


def _sections(update: Update, boundary: int) -> Update:
    delta = update.vectors["delta"]
    parts = {"delta": delta[:boundary], BUFFERS: delta[boundary:]}
    return Update(update.client, update.round, parts, update.weight, update.metrics)


def _model(record: ArrayRecord, buffers: tuple[str, ...]) -> tuple[ModelSpec, Vector, dict[str, Array]]:
    """Layout and vector of the float arrays; integer arrays, such as counters, stay the server's."""
    found = {name: read_array(name, array) for name, array in record.items()}
    spec = ModelSpec.of(found, buffers)
    names = {part.name for part in spec.parts}
    return spec, spec.pack(found), {n: a for n, a in record.items() if n not in names}


def _record(spec: ModelSpec, x: Vector, others: Mapping[str, Array], order: Iterable[str] | None = None) -> ArrayRecord:
    views = spec.views(x)
    made = {n: Array(np.ascontiguousarray(v)) for n, v in views.items()} | dict(others)
    return ArrayRecord({name: made[name] for name in (order or made)})


class Stock:
    """The records of an ordinary ClientApp: the whole model in `arrays`, `num-examples` among the metrics."""

    def __init__(
        self,
        spec: ModelSpec,
        key: str = ARRAYS,
        weight: str = EXAMPLES,
        others: Mapping[str, Array] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.spec, self.key, self.weight = spec, key, weight
        self.others, self.settings = dict(others or {}), dict(settings or {})

    def arrays(self, vectors: Mapping[str, Vector]) -> ArrayRecord:
        """The model's arrays by name, in their shapes.

        Raises:
            ConfigError: the strategy broadcasts a second vector.
        """
        if more := sorted(set(vectors) - {"model"}):
            raise ConfigError(
                f"an ordinary ClientApp has no use for {more[0]!r}",
                where="strategy",
                remedy='Choose a strategy without a client half, and evaluate="global"',
            )
        return _record(self.spec, vectors["model"], self.others)

    def pack(self, task: Task, site: str, deadline: float, carried: ArrayRecord) -> RecordDict:
        """The model and a config of `server-round` and `seed`."""
        config = {"server-round": task.round, "seed": task.seed % (1 << 63), **self.settings}
        return RecordDict({self.key: carried, CONFIG: ConfigRecord(config)})

    def unpack(self, content: RecordDict, site: str, task: Task) -> Reply:
        """local - global as the delta; for an evaluation, the metrics."""
        try:
            metrics: dict[str, Any] = {k: v for r in content.metric_records.values() for k, v in r.items()}
            weight = metrics.pop(self.weight, None)
            if isinstance(weight, float) and weight.is_integer():
                weight = int(weight)
            if not isinstance(weight, int):
                raise MessageError(f"{self.weight!r} is missing or no whole number", where=METRICS)
            if task.kind == "evaluate":
                return Evaluation(site, task.round, metrics, weight, task.run)
            return Update(site, task.round, {"delta": self._delta(content, task)}, weight, metrics, task.run)
        except (MessageError, LayoutError) as error:
            reason = "shape" if isinstance(error, LayoutError) else "header"
            return Failure(site, task.round, reason, str(error), task.run)

    def _delta(self, content: RecordDict, task: Task) -> Vector:
        record = content.array_records.get(self.key)
        if record is None:
            raise MessageError("is missing", where=self.key)
        size = sum(len(a.data) for a in record.values())
        if size > 4 * self.spec.size + 1024 * (len(record) + 1) + sum(len(a.data) for a in self.others.values()):
            raise MessageError(f"{size} bytes, more than this model needs", where=self.key)
        found = {name: read_array(name, array) for name, array in record.items()}
        for part in self.spec.parts:
            if part.name in found and found[part.name].dtype != np.float32:
                raise MessageError(f"is {found[part.name].dtype}, not float32", where=part.name)
        return np.subtract(self.spec.pack(found), task.vectors["model"])


def over(grid: Grid, initial: ArrayRecord, buffers: Iterable[str] = (), **settings: Any) -> tuple[OverGrid, Any]:
    """For the main of a user's ServerApp: a backend over the nodes that are online, and `Federation(initial=...)`.

    Nodes are called node-ID. Only with node authentication do they keep their ids, and so a run can be resumed.

    Args:
        initial: the model to start from.
        settings: what the ClientApp expects in its config, such as `lr`.

    Examples:
        backend, start = over(grid, arrays, lr=0.01)
        Federation(initial=start, strategy=FedAdam(), quorum=2).run(3, backend, "run")
    """
    spec, x, others = _model(initial, tuple(buffers))
    ids = sorted(grid.get_node_ids())
    names = {f"node-{number}": number for number in ids}

    def nodes() -> dict[str, int]:
        alive = set(grid.get_node_ids())
        return {name: number for name, number in names.items() if number in alive}

    codec = Stock(spec, others=others, settings=settings)
    return OverGrid(grid, list(names), nodes, codec=codec, apart=True), (spec, x)
