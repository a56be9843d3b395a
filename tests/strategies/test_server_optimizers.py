"""FedAvgM and FedAdagrad, FedAdam, FedYogi against their equations in float64 and against torch's optimisers."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed import Federation, Task
from polypfed.backends import Local
from polypfed.core import checkpoint as checkpoints
from polypfed.core.messages import Reply
from polypfed.strategies import Cohort, FedAdagrad, FedAdam, FedAvgM, FedYogi, Strategy
from tests.problems import Scripted, absent, sites

COHORT = Cohort(1, ("a",), (1,), 1)
SIZE = 6
few = settings(max_examples=40, deadline=None)
deltas = st.lists(
    st.lists(st.floats(-3, 3, width=32), min_size=SIZE, max_size=SIZE).map(np.float32), min_size=1, max_size=6
)


def moved(strategy: Strategy, given_deltas: list[Any], state: Any = None) -> Any:
    """The path of the model from 0 and the last state, through `step` alone."""
    x, path = np.zeros(SIZE, np.float32), []
    state = strategy.init(x) if state is None else state
    for d in given_deltas:
        x, state = strategy.step(x, state, {"delta": d}, COHORT)
        path.append(x.astype(float))
    return path, state


@few
@given(
    deltas, st.sampled_from([FedAdagrad, FedAdam, FedYogi]), st.sampled_from([0.0, 0.9]), st.sampled_from([1e-3, 0.1])
)
def test_adaptive_strategies_follow_their_box(given_deltas: Any, kind: Any, beta1: float, tau: float) -> None:
    """v_0 = tau^2, no bias correction (T11); a positive delta moves up (T12)."""
    strategy = kind(eta=0.2, beta1=beta1, tau=tau)
    x, m, v = np.zeros(SIZE), np.zeros(SIZE), np.full(SIZE, tau**2)
    for d in (d.astype(float) for d in given_deltas):
        m = beta1 * m + (1 - beta1) * d
        if kind is FedAdagrad:
            v = v + d**2
        elif kind is FedAdam:
            v = 0.99 * v + 0.01 * d**2
        else:
            v = v - 0.01 * d**2 * np.sign(v - d**2)
        x = x + 0.2 * m / (np.sqrt(v) + tau)
    path, state = moved(strategy, given_deltas)
    assert path[-1] == pytest.approx(x, rel=2e-5, abs=2e-5)
    assert state["v"] == pytest.approx(v, rel=1e-5)
    assert (state["v"] >= 0).all()


@few
@given(deltas, st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.3, 1.0]))
def test_fedavgm_is_torch_sgd_with_momentum(given_deltas: Any, momentum: float, eta: float) -> None:
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=eta, momentum=momentum)
    path, _ = moved(FedAvgM(eta=eta, momentum=momentum), given_deltas)
    for d, x in zip(given_deltas, path, strict=True):
        weight.grad = -torch.from_numpy(d.astype(float))
        optimizer.step()
        assert x == pytest.approx(weight.detach().numpy(), rel=1e-5, abs=1e-5)


@few
@given(deltas)
def test_fedadagrad_is_torch_adagrad(given_deltas: Any) -> None:
    """Its initial accumulator is v_0, its eps is tau."""
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = torch.optim.Adagrad([weight], lr=0.1, initial_accumulator_value=1e-6, eps=1e-3)
    path, _ = moved(FedAdagrad(), given_deltas)
    for d, x in zip(given_deltas, path, strict=True):
        weight.grad = -torch.from_numpy(d.astype(float))
        optimizer.step()
        assert x == pytest.approx(weight.detach().numpy(), rel=1e-5, abs=1e-5)


@few
@given(deltas)
def test_fedadam_is_torch_adam_up_to_its_bias_correction(given_deltas: Any) -> None:
    """Kingma and Ba's step t is ours from v = 0 with eta and tau taken for that step (see the peer comparison)."""
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=0.1, betas=(0.9, 0.99), eps=1e-3)
    x, zero = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
    state: Any = {"m": zero, "v": zero}
    for t, d in enumerate(given_deltas, 1):
        root = (1 - 0.99**t) ** 0.5
        corrected = FedAdam(eta=0.1 * root / (1 - 0.9**t), tau=1e-3 * root)
        x, state = corrected.step(x, state, {"delta": d}, COHORT)
        weight.grad = -torch.from_numpy(d.astype(float))
        optimizer.step()
        assert x == pytest.approx(weight.detach().numpy(), rel=1e-4, abs=2e-5)


ALL = [FedAvgM(), FedAdagrad(), FedAdam(), FedYogi()]


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: type(s).__name__)
def test_the_first_step_by_hand(strategy: Strategy) -> None:
    """D = 3 everywhere, one site."""
    path, _ = moved(strategy, [np.full(SIZE, 3, np.float32)])
    first = {
        "FedAvgM": 3.0,
        "FedAdagrad": 0.1 * 3 / ((9 + 1e-6) ** 0.5 + 1e-3),
        "FedAdam": 0.1 * 0.3 / ((0.99e-6 + 0.09) ** 0.5 + 1e-3),
        "FedYogi": 0.1 * 0.3 / ((1e-6 + 0.09) ** 0.5 + 1e-3),
    }
    assert path[0] == pytest.approx(np.full(SIZE, first[type(strategy).__name__]), rel=1e-5)


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: type(s).__name__)
def test_an_empty_round_decays_no_moment(strategy: Strategy, tmp_path: Any) -> None:
    """R3, T28: nobody has examples in round 2, and m and v are those of round 1."""
    states: list[Any] = []

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield replace(reply, weight=0) if task.round == 2 else reply  # type: ignore[call-arg]

    def keep(event: Any) -> None:
        if event.kind == "saved" and event.round:
            states.append(checkpoints.load(tmp_path / "checkpoint"))

    Federation(clients=sites(), strategy=strategy, evaluate="off").run(3, Scripted(script), tmp_path, keep)
    first, second, third = states
    assert second.x.tobytes() == first.x.tobytes() != third.x.tobytes()
    for key in first.state:
        assert second.state[key].tobytes() == first.state[key].tobytes() != third.state[key].tobytes()


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: type(s).__name__)
def test_the_state_is_in_the_checkpoint_and_a_resume_gives_the_same_bits(strategy: Strategy, tmp_path: Any) -> None:
    """T30."""
    fed = Federation(clients=sites(), strategy=strategy, per_round=3)
    straight = fed.run(5, Local()).model
    fed.run(2, Local(), tmp_path)
    assert set(checkpoints.load(tmp_path / "checkpoint").state) == (
        {"m"} if isinstance(strategy, FedAvgM) else {"m", "v"}
    )
    resumed = fed.resume(tmp_path, 5, Local()).model
    assert resumed is not None
    assert straight is not None
    assert resumed.tobytes() == straight.tobytes()


def test_running_variances_stay_above_zero_under_every_server_optimizer() -> None:
    """T13: buffers are averaged and never pass the optimiser."""
    from polypfed.testing import sample_sites

    plain = Federation(clients=sample_sites(4), evaluate="off").run(6, Local())
    assert plain.model is not None
    assert plain.spec is not None
    for strategy in (FedAvgM(), FedAdam(eta=1.0), FedYogi(eta=1.0), FedAdagrad(eta=1.0)):
        found = Federation(clients=sample_sites(4), strategy=strategy, evaluate="off").run(6, Local()).model
        assert found is not None
        buffers = plain.spec.buffers
        assert found[buffers].tobytes() == plain.model[buffers].tobytes()
        assert (found[buffers] >= 0).all()
        assert not np.array_equal(found[plain.spec.trainable], plain.model[plain.spec.trainable])


def test_an_absent_site_is_not_a_site_with_a_delta_of_zero() -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield absent(name, task) if name == "site-03" else reply

    without = Federation(clients=sites(), strategy=FedAvgM(), evaluate="off").run(2, Scripted(script)).model
    three = Federation(clients=sites()[:3], strategy=FedAvgM(), evaluate="off").run(2, Local()).model
    assert without is not None
    assert three is not None
    assert without.tobytes() == three.tobytes()
