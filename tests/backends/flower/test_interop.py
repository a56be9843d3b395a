"""Our strategies in a Flower app, and an ordinary ClientApp under our engine; the ClientApp runs in this process."""

import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg as FlowersFedAvg
from flwr.supercore.task_identity import TaskIdentity

from polypfed import Federation, NumpyClient, strategies
from polypfed.backends import Local
from polypfed.backends.flower.interop import InFlower, over
from polypfed.core.errors import ConfigError
from polypfed.strategies import FedAdam, FedAvg, FedAvgM

A, B, WEIGHT = (1.0, 4.0, 2.0), (0.0, 1.0, -1.0), (30, 10, 5)
IDS = (71, 52, 93)  # as random as Flower's
START = {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "b": np.float32([0.5]), "count": np.array(7)}

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One step of size 0.1 on a/2 |x - b|^2, as a user would write it."""
    site = IDS.index(message.metadata.dst_node_id)
    arrays = {k: v.numpy() for k, v in message.content["arrays"].items()}
    for name in ("w", "b"):
        arrays[name] = arrays[name] - np.float32(0.1 * A[site]) * (arrays[name] - np.float32(B[site]))
    metrics = MetricRecord({"num-examples": WEIGHT[site], "round": int(message.content["config"]["server-round"])})
    record = ArrayRecord({k: Array(v) for k, v in arrays.items()})
    return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    site = IDS.index(message.metadata.dst_node_id)
    loss = float(np.sum((message.content["arrays"]["w"].numpy() - B[site]) ** 2))
    content = RecordDict({"metrics": MetricRecord({"loss": loss, "num-examples": WEIGHT[site]})})
    return Message(content, reply_to=message)


class InProcess:
    """A Grid whose nodes are the ClientApp, called at once; replies come in the order of IDS."""

    def __init__(self, spoil: dict[int, Any] | None = None) -> None:
        self.spoil, self.ready = spoil or {}, dict[str, Message]()
        self.count = 0

    def get_node_ids(self) -> list[int]:
        return list(IDS)

    def push_messages(self, messages: Any) -> list[str]:
        out = []
        for message in messages:
            self.count += 1
            message.metadata.__dict__["_message_id"] = f"m{self.count}"
            node = message.metadata.dst_node_id
            reply = app(message, Context(1, node, {}, RecordDict(), {}))
            if message.metadata.message_type == "train" and node in self.spoil:
                self.spoil[node](reply.content)
            self.ready[f"m{self.count}"] = reply
            out.append(f"m{self.count}")
        return out

    def pull_messages(self, ids: Any) -> list[Message]:
        return [self.ready.pop(i) for i in ids if i in self.ready]

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))


class Broken(InProcess):
    """As over HTTP: whoever takes the reply of node 52, whose upload broke off, waits for the rest of it."""

    def __init__(self) -> None:
        super().__init__()
        self.left = threading.Event()

    def pull_messages(self, ids: Any) -> list[Message]:
        if any(i in self.ready and self.ready[i].metadata.src_node_id == 52 for i in ids):
            self.left.wait(30)
            return []
        return super().pull_messages(ids)


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    before = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def initial() -> ArrayRecord:
    return ArrayRecord({k: Array(np.asarray(v)) for k, v in START.items()})


def flat(arrays: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(arrays[k]) for k in ("w", "b")])


def start(strategy: Any, rounds: int = 3, **settings: Any) -> np.ndarray:
    found = strategy.start(InProcess(**settings), initial(), num_rounds=rounds, train_config=ConfigRecord({"lr": 1.0}))
    arrays = {k: v.numpy() for k, v in found.arrays.items()}
    assert list(arrays) == list(START)
    assert arrays["w"].shape == (2, 3)
    if isinstance(strategy, InFlower):
        assert arrays["count"].dtype == np.int64  # a counter is not averaged
    return flat(arrays)


def ours(strategy: Any, rounds: int = 3, without: int = 0) -> np.ndarray:
    """The same problem with our own clients, but for that node's."""
    x0 = flat(START)
    made = [
        NumpyClient(f"s{i}", lambda x, i=i: A[i] * (x - np.float32(B[i])), x0, lr=0.1, weight=WEIGHT[i])  # type: ignore[misc]
        for i in range(3)
        if IDS[i] != without
    ]
    model = Federation(clients=made, strategy=strategy, evaluate="off").run(rounds, Local()).model
    assert model is not None
    return model


def test_fedavg_agrees_with_flowers_own() -> None:
    np.testing.assert_allclose(start(InFlower(FedAvg())), start(FlowersFedAvg()), rtol=1e-5)


@pytest.mark.parametrize("strategy", [FedAvg(), FedAvgM(), FedAdam()], ids=lambda s: type(s).__name__)
def test_in_flower_as_under_our_engine(strategy: Any) -> None:
    np.testing.assert_allclose(start(InFlower(strategy)), ours(strategy), rtol=2e-5, atol=1e-6)


def test_state_is_kept_between_rounds_and_can_be_taken_up() -> None:
    whole, first, second = InFlower(FedAvgM()), InFlower(FedAvgM()), InFlower(FedAvgM())
    straight = whole.start(InProcess(), initial(), num_rounds=4).arrays
    half = first.start(InProcess(), initial(), num_rounds=2).arrays
    second.state = first.state
    again = second.start(InProcess(), half, num_rounds=2).arrays
    assert again["w"].numpy().tobytes() == straight["w"].numpy().tobytes()
    assert InFlower(FedAvgM()).start(InProcess(), half, num_rounds=2).arrays["w"].data != again["w"].data


@pytest.mark.parametrize("name", ["Scaffold", "FedProx", "FedNova", "FedDyn"])
def test_a_strategy_with_a_client_half_is_refused(name: str) -> None:
    kind = getattr(strategies, name)
    made = kind(mu=0.1) if name == "FedProx" else kind()
    with pytest.raises(ConfigError, match=f"{name}: has a client half"):
        InFlower(made)


def put(value: Any) -> Any:
    def spoil(content: RecordDict) -> None:
        content["arrays"]["w"] = Array(value)

    return spoil


def no_weight(content: RecordDict) -> None:
    del content["metrics"]["num-examples"]


def no_arrays(content: RecordDict) -> None:
    del content["arrays"]


SPOILT = {
    "shape": put(np.zeros((3, 3), np.float32)),
    "nan": put(np.full((2, 3), np.nan, np.float32)),
    "dtype": put(np.zeros((2, 3), np.int8)),
    "huge": put(np.zeros((1000, 1000), np.float32)),
    "far": put(np.full((2, 3), 1e30, np.float32)),
    "no weight": no_weight,
    "no arrays": no_arrays,
}


@pytest.mark.parametrize("name", SPOILT)
def test_one_bad_reply_costs_that_node_its_round_in_both(name: str) -> None:
    """What ends a run of Flower's own FedAvg, or spoils its model, is left out: the result is the others'."""
    strategy = InFlower(FedAvg())
    spoilt = start(strategy, rounds=1, spoil={52: SPOILT[name]})
    weight = np.float64([30, 0, 5])
    x0 = flat(START)
    local = [x0 - np.float32(0.1 * A[i]) * (x0 - np.float32(B[i])) for i in range(3)]
    np.testing.assert_allclose(spoilt, np.average(local, axis=0, weights=weight), rtol=1e-5)
    assert [(r, n) for r, n, _ in strategy.refused] == [(1, "node-52")]
    backend, begin = over(InProcess({52: SPOILT[name]}), initial())  # type: ignore[arg-type]
    history = Federation(initial=begin, quorum=2).run(1, backend)
    np.testing.assert_allclose(history.model, spoilt, rtol=1e-6)
    assert [f.client for f in history.failures] == ["node-52"]


def test_an_ordinary_client_app_under_our_engine() -> None:
    backend, begin = over(InProcess(), initial(), lr=0.5)  # type: ignore[arg-type]
    fed = Federation(initial=begin, strategy=FedAdam(), quorum=3, keep_best="-loss")
    history = fed.run(3, backend)
    assert not history.failures
    np.testing.assert_allclose(history.model, ours(FedAdam()), rtol=2e-5, atol=1e-6)
    assert sorted({r["site"] for r in history.rows if r["metric"] == "loss" and r["site"]}) == sorted(
        f"node-{n}" for n in IDS
    )


def test_an_upload_that_broke_off_holds_up_neither_the_deadline_nor_the_others() -> None:
    grid = Broken()
    backend, begin = over(grid, initial())  # type: ignore[arg-type]
    begun = monotonic()
    history = Federation(initial=begin, quorum=2, deadline=0.5, evaluate="off").run(1, backend)
    assert monotonic() - begun < 10
    grid.left.set()
    assert [(f.client, f.reason) for f in history.failures] == [("node-52", "deadline")]
    np.testing.assert_allclose(history.model, ours(FedAvg(), 1, without=52), rtol=1e-6)


def test_a_second_vector_is_refused_with_a_remedy() -> None:
    backend, begin = over(InProcess(), initial())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has no use for 'c'"):
        Federation(initial=begin, strategy=strategies.Scaffold(), evaluate="off").run(1, backend)
