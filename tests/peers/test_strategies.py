"""Other libraries' strategies on the same random replies, wherever those are right, and where they are not."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polypfed import Update
from polypfed.core.reduce import InOrder, Mean
from polypfed.strategies import (
    Cohort,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Scaffold,
    Strategy,
)
from polypfed.strategies.fedprox import ProxRule

SHAPES = {"w": (3, 2), "b": (4,)}
SIZE = 10
few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 10**6)
Rounds = list[list[tuple[Any, int]]]


def replies(seed: int, rounds: int = 3) -> tuple[Any, Rounds]:
    """A start, and for each round the (local model minus start of that round, examples) of three to five sites."""
    rng = np.random.default_rng(seed)
    some = rng.integers(3, 6, rounds)
    made = [
        [(rng.normal(size=SIZE).astype(np.float32), int(rng.integers(1, 500))) for _ in range(count)] for count in some
    ]
    return rng.normal(size=SIZE).astype(np.float32), made


def arrays(x: Any) -> dict[str, Any]:
    return {"w": x[:6].reshape(3, 2), "b": x[6:]}


def flat(named: Mapping[str, Any]) -> Any:
    return np.concatenate([np.asarray(named[name]).ravel() for name in SHAPES])


def ours(strategies: list[Strategy], x: Any, made: Rounds, state: Any = None) -> Iterator[Any]:
    """The model after each round; one strategy for each, so that a rate may change between rounds."""
    state = strategies[0].init(x) if state is None else state
    for strategy, deltas in zip(strategies, made, strict=True):
        total = strategy.reducer.start({"delta": SIZE})
        for i, (delta, n) in enumerate(deltas):
            total.add(i, Update(f"s{i}", 1, {"delta": delta}, n))
        names, weights = tuple(f"s{i}" for i in range(len(deltas))), tuple(n for _, n in deltas)
        x, state = strategy.step(x, state, total.result(), Cohort(1, names, weights, len(deltas)))
        yield x


# ------------------------------------------------------------------------------------------------------------ Flower


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> Any:
    """flwr's strategies, with replies made outside of a run."""
    pytest.importorskip("flwr")
    import flwr.serverapp.strategy as room
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    logging.getLogger("flwr").setLevel(logging.CRITICAL)

    class Grid:
        def get_node_ids(self) -> list[int]:
            return [1, 2, 3]

    def run(kind: str, x: Any, made: Rounds, **settings: Any) -> Iterator[Any]:
        strategy = getattr(room, kind)(**settings)
        for number, deltas in enumerate(made, 1):
            record = ArrayRecord({k: room_array(v) for k, v in arrays(x).items()})
            list(strategy.configure_train(number, record, ConfigRecord(), Grid()))
            messages = []
            for delta, n in deltas:
                content = RecordDict(
                    {
                        "arrays": ArrayRecord({k: room_array(v) for k, v in arrays(x + delta).items()}),
                        "metrics": MetricRecord({"num-examples": n}),
                    }
                )
                messages.append(Message(content, dst_node_id=1, message_type="train"))
            found, _ = strategy.aggregate_train(number, messages)
            x = flat({k: v.numpy() for k, v in found.items()}).astype(np.float32)
            yield x

    def room_array(value: Any) -> Any:
        from flwr.app import Array

        return Array(np.ascontiguousarray(value))

    return run


ZERO: dict[str, Any] = {"m": np.zeros(SIZE, np.float32), "v": np.zeros(SIZE, np.float32)}


def compare(mine: Iterator[Any], theirs: Iterator[Any], tolerance: float = 5e-6) -> None:
    for found, wanted in zip(mine, theirs, strict=True):
        assert found == pytest.approx(wanted, rel=tolerance, abs=tolerance)


@few
@given(seeds)
def test_fedavg_and_fedprox_s_server_as_flower_s(flower: Any, seed: int) -> None:
    x, made = replies(seed)
    compare(ours([FedAvg()] * 3, x, made), flower("FedAvg", x, made))
    compare(ours([FedProx(mu=0.3)] * 3, x, made), flower("FedProx", x, made, proximal_mu=0.3))


@few
@given(seeds, st.sampled_from([(1.0, 0.9), (0.4, 0.5)]))
def test_fedavgm_as_flower_s(flower: Any, seed: int, rates: tuple[float, float]) -> None:
    (eta, momentum), (x, made) = rates, replies(seed)
    theirs = flower("FedAvgM", x, made, server_learning_rate=eta, server_momentum=momentum)
    compare(ours([FedAvgM(eta=eta, momentum=momentum)] * 3, x, made), theirs)


@few
@given(seeds)
def test_fedadagrad_and_fedyogi_as_flower_s_from_its_start(flower: Any, seed: int) -> None:
    """Flower starts from v_0 = 0, the paper from tau^2; the steps are the same."""
    x, made = replies(seed)
    compare(ours([FedAdagrad()] * 3, x, made, ZERO), flower("FedAdagrad", x, made))
    compare(ours([FedYogi(eta=0.01)] * 3, x, made, ZERO), flower("FedYogi", x, made, eta=0.01))
    paper = list(ours([FedAdagrad()] * 3, x, made))
    assert np.abs(paper[0] - next(flower("FedAdagrad", x, made))).max() > 1e-9


@few
@given(seeds)
def test_fedadam_as_flower_s_with_its_correction_in_our_rate(flower: Any, seed: int) -> None:
    """T11: v_0 = 0 and a correction with exponent round + 1, neither Reddi's nor Kingma and Ba's. Ours has none."""
    x, made = replies(seed)
    corrected = [FedAdam(eta=0.1 * (1 - 0.99 ** (t + 1)) ** 0.5 / (1 - 0.9 ** (t + 1))) for t in (1, 2, 3)]
    compare(ours(list(corrected), x, made, ZERO), flower("FedAdam", x, made))
    paper = list(ours([FedAdam()] * 3, x, made))[-1]
    assert np.abs(paper - list(flower("FedAdam", x, made))[-1]).max() > 1e-3


# ------------------------------------------------------------------------------------------------------------ NVFlare


def nvflare_result(name: str, params: Mapping[str, Any], steps: int, meta: Mapping[str, Any] | None = None) -> Any:
    from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

    known = {"NUM_STEPS_CURRENT_ROUND": steps, "client_name": name}
    return FLModel(params=dict(params), params_type=ParamsType.DIFF, current_round=0, meta=known | dict(meta or {}))


@few
@given(seeds)
def test_the_weighted_mean_as_nvflare_s(seed: int) -> None:
    pytest.importorskip("nvflare")
    from nvflare.app_common.workflows.base_fedavg import BaseFedAvg

    x, made = replies(seed, 1)
    results = [nvflare_result(f"s{i}", arrays(d), n) for i, (d, n) in enumerate(made[0])]
    theirs = x + flat(BaseFedAvg.aggregate_fn(results).params)
    compare(ours([FedAvg()], x, made), iter([theirs]))


@few
@given(seeds)
def test_server_optimizers_as_nvflare_s_fedopt(seed: int) -> None:
    pytest.importorskip("nvflare")
    torch = pytest.importorskip("torch")
    from nvflare.app_opt.pt.fedopt_ctl import FedOpt

    x, made = replies(seed)
    for kind, settings_, strategy in (
        (torch.optim.SGD, {"lr": 0.7, "momentum": 0.6}, FedAvgM(eta=0.7, momentum=0.6)),
        (torch.optim.Adagrad, {"lr": 0.1, "eps": 1e-3, "initial_accumulator_value": 1e-6}, FedAdagrad()),
    ):
        model = torch.nn.ParameterDict(
            {k: torch.nn.Parameter(torch.from_numpy(v.copy())) for k, v in arrays(x).items()}
        )
        controller = FedOpt.__new__(FedOpt)  # its constructor needs a running controller; the update does not
        controller.torch_model, controller.device = model, torch.device("cpu")
        controller.optimizer, controller.lr_scheduler = kind(model.parameters(), **settings_), None
        path = list(ours([strategy] * 3, x, made))
        for found, deltas in zip(path, made, strict=True):
            mean = sum(n * d.astype(float) for d, n in deltas) / sum(n for _, n in deltas)
            weights, _ = controller.optimizer_update({k: v.astype(np.float32) for k, v in arrays(mean).items()})
            assert found == pytest.approx(flat({k: v.detach().numpy() for k, v in weights.items()}), abs=5e-6)


def scaffold_replies(seed: int, steps: list[int]) -> tuple[Any, list[Any]]:
    rng = np.random.default_rng(seed)
    pairs = [(rng.normal(size=SIZE).astype(np.float32), rng.normal(size=SIZE).astype(np.float32)) for _ in steps]
    results = [
        nvflare_result(f"s{i}", arrays(d), k, {"scaffold_c_diff": arrays(dc)})
        for i, ((d, dc), k) in enumerate(zip(pairs, steps, strict=True))
    ]
    return pairs, results


@pytest.mark.parametrize("population", [4, 8])
def test_scaffold_s_server_as_nvflare_s_where_that_is_right(population: int) -> None:
    """T02: its step-weighted mean of dc, without m/N, is right for full participation and equal steps alone."""
    pytest.importorskip("nvflare")
    from nvflare.app_common.workflows.scaffold import scaffold_aggregate_fn

    pairs, results = scaffold_replies(3, [5] * 4)
    found = scaffold_aggregate_fn(results)
    theirs = flat(found.params), flat(found.meta["scaffold_c_diff"])
    strategy, zero = Scaffold(), np.zeros(SIZE, np.float32)
    mean = {"delta": np.mean([d for d, _ in pairs], axis=0), "dc": np.mean([dc for _, dc in pairs], axis=0)}
    cohort = Cohort(1, tuple("abcd"), (1,) * 4, population)
    x, state = strategy.step(zero, strategy.init(zero), mean, cohort)
    assert x == pytest.approx(theirs[0], abs=2e-6)
    share = 4 / population
    assert state["c"] == pytest.approx(share * theirs[1], abs=2e-6)
    if population == 8:
        assert np.abs(state["c"] - theirs[1]).max() > 0.1


def test_scaffold_s_server_does_not_weigh_by_steps() -> None:
    pytest.importorskip("nvflare")
    from nvflare.app_common.workflows.scaffold import scaffold_aggregate_fn

    pairs, results = scaffold_replies(4, [1, 9])
    theirs = flat(scaffold_aggregate_fn(results).meta["scaffold_c_diff"])
    total = Scaffold().reducer.start({"delta": SIZE, "dc": SIZE})
    for i, (d, dc) in enumerate(pairs):
        total.add(i, Update(f"s{i}", 1, {"delta": d, "dc": dc}, (1, 9)[i]))
    mine = total.result()["dc"]
    assert mine == pytest.approx(np.mean([dc for _, dc in pairs], axis=0), abs=1e-6)
    assert np.abs(mine - theirs).max() > 0.1


@few
@given(seeds, st.sampled_from([0.1, 2.0]))
def test_the_proximal_term_as_nvflare_s(seed: int, mu: float) -> None:
    """T14: its loss is the square; autograd of it is our gradient."""
    pytest.importorskip("nvflare")
    torch = pytest.importorskip("torch")
    from nvflare.app_opt.pt.fedproxloss import PTFedProxLoss

    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=SIZE).astype(np.float32) for _ in range(2))
    local, received = torch.nn.Linear(SIZE, 1, bias=False), torch.nn.Linear(SIZE, 1, bias=False)
    for layer, values in ((local, y), (received, x)):
        layer.weight.data = torch.from_numpy(values.copy())[None]
    PTFedProxLoss(mu)(local, received).backward()
    rule = ProxRule(mu)
    rule.begin(x, {}, {})
    assert rule.direction(np.zeros(SIZE, np.float32), y) == pytest.approx(local.weight.grad[0].numpy(), abs=1e-6)


def test_the_order_of_arrival_changes_the_bits_of_nvflare_s_mean_and_not_of_ours() -> None:
    """T29."""
    pytest.importorskip("nvflare")
    from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

    rng = np.random.default_rng(1)
    vectors = [(rng.normal(size=1000) * 10.0 ** rng.integers(-3, 4)).astype(np.float32) for _ in range(5)]

    def ours(order: Any) -> bytes:
        queue = InOrder(Mean().start({"delta": 1000}), [f"s{i}" for i in range(5)])
        for i in order:
            queue.add(Update(f"s{i}", 1, {"delta": vectors[i]}, int(7 + i)))
        return queue.result()["delta"].tobytes()

    def theirs(order: Any) -> bytes:
        helper = WeightedAggregationHelper()
        for i in order:
            helper.add({"x": vectors[i]}, float(7 + i), f"s{i}", 0)
        return bytes(helper.get_result()["x"].tobytes())

    orders = [rng.permutation(5) for _ in range(20)]
    assert len({ours(o) for o in orders}) == 1
    assert len({theirs(o) for o in orders}) > 1
