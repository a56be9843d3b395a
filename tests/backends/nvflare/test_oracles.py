"""NVFlare's own helpers, called without an engine, on the inputs that our server half gets; differences by name."""

import warnings
from typing import Any

import numpy as np
import pytest

from polypfed import Federation, Task
from polypfed.backends import Local
from polypfed.core.model import Vector
from polypfed.strategies import FedAdam, FedAvg, FedAvgM, Scaffold
from polypfed.strategies.base import Cohort
from tests.problems import sites

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nvflare.apis.fl_constant import FLMetaKey
    from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
    from nvflare.app_common.app_constant import AlgorithmConstants
    from nvflare.app_common.workflows.base_fedavg import BaseFedAvg
    from nvflare.app_common.workflows.scaffold import scaffold_aggregate_fn
    from nvflare.app_opt.pt.fedopt_ctl import FedOpt


SIZE, ROUNDS = 40, 4


def draws(count: int = ROUNDS) -> list[Vector]:
    random = np.random.default_rng(5)
    return [random.normal(0, 0.3, SIZE).astype(np.float32) for _ in range(count)]


def fl_model(name: str, vector: Vector, steps: int, **meta: Any) -> FLModel:
    about = {FLMetaKey.NUM_STEPS_CURRENT_ROUND: steps, "client_name": name, **meta}
    return FLModel(params_type=ParamsType.DIFF, params={"x": vector}, meta=about, current_round=0)


def test_fedavg_is_nvflares_fedavg() -> None:
    """Theirs weighs by what a site calls its steps; there examples belong, as their examples do it too."""
    own = sites(4, SIZE)
    x = own[0].initial()[1]
    history = Federation(clients=own, strategy=FedAvg(), evaluate="off").run(1, Local())
    task = Task(1, "fit", {"model": x})
    results = [fl_model(c.name, c.fit(task).vectors["delta"], c.weight) for c in sites(4, SIZE)]
    theirs = BaseFedAvg.aggregate_fn(results).params["x"]
    np.testing.assert_allclose(history.model - x, theirs, rtol=2e-6, atol=1e-7)


class Model(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.zeros(SIZE))


def theirs(optimizer: Any, **settings: Any) -> list[Vector]:
    """The models that NVFlare's FedOpt reaches from zero, given these mean deltas."""
    controller = FedOpt.__new__(FedOpt)
    controller.torch_model, controller.device, controller.lr_scheduler = Model(), torch.device("cpu"), None
    controller.optimizer = optimizer(controller.torch_model.parameters(), **settings)
    return [controller.optimizer_update({"x": d})[0]["x"].detach().numpy().copy() for d in draws()]


def ours(strategy: Any) -> list[tuple[Vector, Any]]:
    x, out = np.zeros(SIZE, np.float32), []
    state = strategy.init(x)
    for number, d in enumerate(draws(), 1):
        x, state = strategy.step(x, state, {"delta": d}, Cohort(number, ("a",), (1,), 1))
        out.append((x, state))
    return out


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fedavgm_is_nvflares_fedopt_with_sgd(momentum: float) -> None:
    for (x, _), other in zip(
        ours(FedAvgM(eta=0.7, momentum=momentum)), theirs(torch.optim.SGD, lr=0.7, momentum=momentum), strict=True
    ):
        np.testing.assert_allclose(x, other, rtol=1e-5, atol=1e-6)


def test_fedadam_is_nvflares_fedopt_with_adam_but_for_bias_correction_and_v0() -> None:
    """The paper has neither bias correction nor v0 = 0. With both put in, our moments give their steps."""
    b1, b2, tau, eta = 0.9, 0.99, 1e-3, 0.1
    before = np.zeros(SIZE)
    found = ours(FedAdam(eta=eta, beta1=b1, beta2=b2, tau=tau))
    for t, ((x, state), other) in enumerate(
        zip(found, theirs(torch.optim.Adam, lr=eta, betas=(b1, b2), eps=tau), strict=True), 1
    ):
        m = state["m"].astype(np.float64) / (1 - b1**t)
        v = (state["v"].astype(np.float64) - tau**2 * b2**t) / (1 - b2**t)
        before = before + eta * m / (np.sqrt(np.maximum(v, 0)) + tau)
        np.testing.assert_allclose(before, other, rtol=1e-4, atol=2e-5)
        assert np.abs(x - other).max() > 1e-3  # and without them they differ


def controls(steps: tuple[int, int]) -> tuple[Vector, Vector]:
    """c after one round, ours and NVFlare's, of two sites whose controls move by 1 and 5."""
    moves = [np.full(1, 1.0, np.float32), np.full(1, 5.0, np.float32)]
    results = [
        fl_model(f"s{i}", np.zeros(1, np.float32), n, **{AlgorithmConstants.SCAFFOLD_CTRL_DIFF: {"x": d}})
        for i, (n, d) in enumerate(zip(steps, moves, strict=True))
    ]
    other = scaffold_aggregate_fn(results).meta[AlgorithmConstants.SCAFFOLD_CTRL_DIFF]["x"]
    strategy, x = Scaffold(), np.zeros(1, np.float32)
    mean = {"delta": x, "dc": np.mean(moves, axis=0)}  # even, as line 17 has it
    _, state = strategy.step(x, strategy.init(x), mean, Cohort(1, ("s0", "s1"), (1, 1), 2))
    return state["c"], other


def test_scaffold_is_nvflares_where_all_sites_take_part_with_equal_steps() -> None:
    one, other = controls((2, 2))
    assert one.tolist() == other.tolist() == [3.0]


def test_scaffold_is_the_papers_where_nvflare_weighs_controls_by_steps() -> None:
    one, other = controls((1, 3))
    assert one.tolist() == [3.0]  # Algorithm 1, line 17
    assert other.tolist() == [4.0]
