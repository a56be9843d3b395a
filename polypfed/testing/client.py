"""check_client: does a site keep the contract the engine and its shell rely on?"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polypfed.clients.base import Client, HasInitial
from polypfed.core.gate import Gate
from polypfed.core.messages import Evaluation, Task, Update, decode, encode
from polypfed.core.model import ModelSpec, Vector, shared
from polypfed.core.settings import site_names
from polypfed.strategies.base import Strategy, uploads
from polypfed.strategies.fedavg import FedAvg
from polypfed.strategies.feddyn import FedDyn
from polypfed.strategies.registry import Registry
from polypfed.testing.errors import demand, ruled, same

Make = Callable[[], Client]
Start = tuple[ModelSpec, Vector]
STRATEGIES: tuple[Strategy, ...] = (FedAvg(), FedDyn(alpha=0.1))
"""One that needs nothing of a client, and one that bends its gradients and keeps a vector at the site."""


def check_client(make: Make, *, initial: Start | None = None, strategies: Sequence[Strategy] = STRATEGIES) -> None:
    """Check a client by itself, without an engine.

    Args:
        make: makes the same client anew at each call.
        initial: layout and starting model; None takes it from the client's own `initial`.
        strategies: under which it must be able to train.

    Raises:
        ContractError: naming the rule that is broken.

    Examples:
        >>> from polypfed import NumpyClient
        >>> check_client(lambda: NumpyClient("a", lambda x: x - 3.0, [0.0, 1.0]))
    """
    with ruled("name", "client"):
        site_names([make().name])
    where = make().name
    with ruled("start", where):
        start = initial or _start(make)
    for strategy in strategies:
        for check in (fits, repeats, restores):
            with ruled(check.__name__, f"{where} under {type(strategy).__name__}"):
                check(make, start, strategy)
    with ruled("evaluates", where):
        evaluates(make, start)


def _start(make: Make) -> Start:
    client = make()
    demand(isinstance(client, HasInitial), "has no initial(), and no initial model was given")
    assert isinstance(client, HasInitial)
    (spec, x), again = client.initial(), make().initial()  # type: ignore[attr-defined]  # as just seen
    spec.views(x)
    demand(spec == again[0] and same(np.array(x), np.array(again[1])), "initial() differs from call to call")
    return spec, x


def fits(make: Make, start: Start, strategy: Strategy) -> None:
    """The update passes the gate, travels, and what the task brought is left alone."""
    client, task = make(), _task(start, strategy, 1)
    before = {name: vector.copy() for name, vector in task.vectors.items()}
    update = client.fit(task)
    demand(isinstance(update, Update), f"fit gives {type(update).__name__}, not an Update")
    demand(same(before, dict(task.vectors)), "fit changes the vectors of the task")
    spec = start[0]
    lengths = {"delta": spec.size, **uploads(strategy, spec.boundary)}
    Gate("", 1, frozenset([client.name]), lengths, max_norm=1e30).admit(update)
    demand(_bits(decode(encode(update))) == _bits(update), "the update is another after its journey")


def repeats(make: Make, start: Start, strategy: Strategy) -> None:
    """Equal tasks give equal bits: whatever is random follows the task's seed."""
    task = _task(start, strategy, 1)
    demand(_bits(make().fit(task)) == _bits(make().fit(task)), "the same task gives another update")


def restores(make: Make, start: Start, strategy: Strategy) -> None:
    """`state` is all that a restart needs, and `b""` all that a new beginning needs."""
    first, second = _task(start, strategy, 1), _task(start, strategy, 2)
    lasting, restarted = make(), make()
    one = lasting.fit(first)
    bits, kept = _bits(one), lasting.state()
    demand(isinstance(kept, bytes), f"state gives {type(kept).__name__}, not bytes")
    restarted.restore(kept)
    demand(restarted.state() == kept, "restore(state()) leaves another state")
    demand(_bits(lasting.fit(second)) == _bits(restarted.fit(second)), "a restart gives another update")
    lasting.restore(b"")
    demand(_bits(lasting.fit(first)) == bits, 'restore(b"") is not a new beginning')


def evaluates(make: Make, start: Start) -> None:
    """Scores are plain finite numbers, the same each time, and scoring changes nothing the client keeps."""
    client, task = make(), Task(1, "evaluate", shared({"model": start[1]}), {"seed": 1})
    before = client.state()
    scores = client.evaluate(task)
    demand(isinstance(scores, Evaluation), f"evaluate gives {type(scores).__name__}, not an Evaluation")
    demand(scores.client == client.name and scores.round == 1, "names another site or round")
    demand(type(scores.weight) is int and scores.weight >= 0, f"the weight is {scores.weight!r}")
    decode(encode(scores))
    timeless = [{k: v for k, v in s.metrics.items() if not k.endswith("_s")} for s in (scores, client.evaluate(task))]
    demand(timeless[0] == timeless[1], "the same model gets another score")
    demand(client.state() == before, "changes what the client keeps")


def _task(start: Start, strategy: Strategy, number: int) -> Task:
    spec, x = start
    config: dict[str, Any] = {"seed": 10 + number, "strategy": Registry.describe(strategy)}
    trainable = x[spec.trainable]
    return Task(number, "fit", shared({"model": x, **strategy.broadcast(trainable, strategy.init(trainable))}), config)


def _bits(update: Any) -> tuple[object, ...]:
    return update.client, update.round, update.weight, {k: v.tobytes() for k, v in sorted(update.vectors.items())}
