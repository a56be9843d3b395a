"""TorchClient against training written by hand, and against whatever else the process does."""

import random
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from polypfed.clients import TorchClient, training
from polypfed.clients.flat import FlatModel
from polypfed.clients.isolation import isolated
from polypfed.clients.training import TrainingError, split
from polypfed.core.errors import ConfigError, DataError, LayoutError
from polypfed.core.messages import Task
from polypfed.core.seeds import generator
from polypfed.strategies import Base, Registry

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 3, 8, 8)).astype(np.float32)
Y = RNG.integers(0, 4, 20)
CROSS = nn.functional.cross_entropy


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
        )


def client(name: str = "a", **settings: Any) -> TorchClient:
    settings = {"module": network(), "loss": CROSS, "data": (X, Y), "batch": 8, "epochs": 2} | settings
    return TorchClient(name, **settings)


def task(x: np.ndarray, seed: int = 7, round: int = 1, **vectors: np.ndarray) -> Task:
    return Task(round, "fit", {"model": x, **vectors}, {"seed": seed})


class Bent:
    """A client half that adds a constant vector and a proximal pull, and reports what it was told."""

    def begin(self, x: Any, shared: Any, mine: Any) -> None:
        self.x, self.c, self.seen = x, shared["c"], sorted(mine)

    def direction(self, gradient: Any, y: Any) -> Any:
        return gradient + self.c + np.float32(0.1) * (y - self.x)

    def finish(self, x: Any, y: Any, steps: int, lr: float) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"pace": np.array([steps * lr], np.float32), "moved": y - x}, {"kept": y - x}


class BentStrategy(Base):
    def local_rule(self) -> Bent:
        return Bent()


@pytest.fixture
def bent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registry, "build", classmethod(lambda cls, description: BentStrategy()))


def by_hand(x: np.ndarray, seed: int, c: np.ndarray, **sgd: Any) -> tuple[np.ndarray, int]:
    """Plain torch on a second network: per-parameter gradients, one optimiser, the same order of examples."""
    net = network()
    names = [n for n, _ in net.named_parameters()]
    parameters = [p for _, p in net.named_parameters()]
    ends = np.cumsum([p.numel() for p in parameters])
    parts = list(zip(np.split(c, ends[:-1]), np.split(x[: ends[-1]], ends[:-1]), strict=True))
    optimizer, steps = torch.optim.SGD(parameters, **sgd), 0
    order = generator(seed, "order")
    for _ in range(2):
        for rows in split(order.permutation(20), 8):
            optimizer.zero_grad()
            CROSS(net(torch.from_numpy(X[rows])), torch.from_numpy(Y[rows])).backward()
            for p, (shift, start) in zip(parameters, parts, strict=True):
                old = torch.from_numpy(start).view_as(p)
                p.grad += torch.from_numpy(shift).view_as(p) + 0.1 * (p.detach() - old)
            optimizer.step()
            steps += 1
    state = net.state_dict()
    running = [v for n, v in state.items() if n not in names and v.is_floating_point()]
    return np.concatenate([t.detach().numpy().ravel() for t in [*parameters, *running]]), steps


def test_layout_has_trainable_first_and_no_counters():
    spec, x = client().initial()
    assert [p.name for p in spec.parts[-2:]] == ["1.running_mean", "1.running_var"]
    assert [name for name, _, _ in spec.local] == ["1.num_batches_tracked"]
    assert x.shape == (spec.size,)
    assert spec.boundary == sum(p.numel() for p in network().parameters())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_bent_gradient_equals_sgd_by_hand(bent, momentum):
    one = client(optimizer=partial(torch.optim.SGD, lr=0.05, momentum=momentum, weight_decay=0.01))
    spec, x = one.initial()
    c = RNG.normal(size=spec.boundary).astype(np.float32) * np.float32(0.1)
    update = one.fit(task(x, c=c))
    y, steps = by_hand(x, 7, c, lr=0.05, momentum=momentum, weight_decay=0.01)
    assert x + update.vectors["delta"] == pytest.approx(y, abs=2e-6)
    assert np.abs(update.vectors["delta"]).max() > 1e-3
    assert update.vectors["moved"] == pytest.approx((y - x)[: spec.boundary], abs=2e-6)
    # How far SGD moves under the constant gradient 1: momentum sums a geometric series, weight decay has no part.
    pace = 0.05 * sum((1 - momentum**k) / (1 - momentum) for k in range(1, steps + 1))
    assert update.vectors["pace"] == pytest.approx(pace, rel=1e-6)


def test_zero_correction_is_bit_identical_to_plain_training(bent, monkeypatch):
    one = client()
    spec, x = one.initial()
    monkeypatch.setattr(Bent, "direction", lambda self, gradient, y: gradient)
    ruled = one.fit(task(x, c=np.zeros(spec.boundary, np.float32))).vectors["delta"]
    monkeypatch.undo()
    assert (client().fit(task(x)).vectors["delta"] == ruled).all()


def test_one_flat_gradient_or_many_give_the_same_bits(monkeypatch):
    many = client().fit(task(client().initial()[1])).vectors["delta"].copy()
    collect = FlatModel.collect_gradients
    monkeypatch.setattr(FlatModel, "collect_gradients", lambda self, flat: collect(self, flat=True))
    one = client().fit(task(client().initial()[1])).vectors["delta"]
    assert (many == one).all()


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_plain_sgd_without_torchs_wrappers_gives_the_same_bits(strategy, monkeypatch):
    def trained() -> np.ndarray:
        one = client(optimizer=partial(torch.optim.SGD, lr=0.07))
        told = Task(1, "fit", {"model": one.initial()[1]}, {"seed": 7, "strategy": {"name": strategy}})
        return one.fit(told).vectors["delta"].copy()

    quick = trained()
    monkeypatch.setattr(training, "stepper", lambda optimizer: optimizer.step)
    assert (trained() == quick).all()


@pytest.mark.parametrize(
    "settings",
    [{"momentum": 0.5}, {"weight_decay": 0.1}, {"maximize": True}, {"fused": True}, {"foreach": True}],
    ids=str,
)
def test_any_other_step_is_torchs_own(settings):
    parameter = nn.Parameter(torch.ones(2))
    special = torch.optim.SGD([parameter], lr=0.1, **settings)
    assert training.stepper(special) == special.step
    adam = torch.optim.Adam([parameter])
    assert training.stepper(adam) == adam.step
    hooked = torch.optim.SGD([parameter], lr=0.1)
    assert training.stepper(hooked) != hooked.step
    hooked.register_step_post_hook(lambda *_: None)
    assert training.stepper(hooked) == hooked.step
    scheduled = torch.optim.SGD([parameter], lr=0.1)
    torch.optim.lr_scheduler.StepLR(scheduled, 1)
    assert training.stepper(scheduled) == scheduled.step


def test_state_round_trip(bent):
    one = client()
    spec, x = one.initial()
    assert one.state() == b""
    one.fit(task(x, c=np.zeros(spec.boundary, np.float32)))
    other = client()
    other.restore(one.state())
    assert (other._kept["kept"] == one._kept["kept"]).all()
    other.restore(b"")
    assert other._kept == {}


def test_same_task_same_bits_whoever_trained_before():
    net = network()
    a = client("a", module=net)
    b = client("b", module=net, data=(X[:5] * 3, Y[:5]), optimizer=partial(torch.optim.Adam, lr=0.1), epochs=3)
    _, x = a.initial()
    x = x.copy()
    first = a.fit(task(x)).vectors["delta"].copy()
    b.fit(task(x, seed=1))
    random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002
    assert (a.fit(task(x)).vectors["delta"] == first).all()
    assert (client("a").fit(task(x)).vectors["delta"] == first).all()  # and a fresh module, as in another process
    assert (a.fit(task(x, seed=8)).vectors["delta"] != first).any()


def test_clients_of_one_module_share_it_and_travel_together():
    net = network()
    pair = [client("a", module=net), client("b", module=net)]
    assert pair[0]._flat is pair[1]._flat
    _, x = pair[0].initial()
    before = pair[0].fit(task(x)).vectors["delta"]
    back = ForkingPickler.loads(ForkingPickler.dumps(pair))  # as a worker process gets them
    assert back[0]._flat is back[1]._flat
    assert back[0].module is back[1].module
    assert (back[0].fit(task(x)).vectors["delta"] == before).all()
    # The copy trains on memory of its own.
    here = pair[0]._flat.values.copy()
    back[1].fit(task(x, seed=3))
    assert (pair[0]._flat.values == here).all()


def test_global_generators_and_threads_are_left_alone():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    threads = torch.get_num_threads()
    one = client(threads=threads + 1)
    one.fit(task(one.initial()[1]))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected  # noqa: NPY002
    assert torch.get_num_threads() == threads


def test_isolation_survives_an_exception():
    def fails() -> None:
        with isolated(3, 1):
            _ = random.random() / 0

    before = random.getstate()
    with pytest.raises(ZeroDivisionError):
        fails()
    assert random.getstate() == before


def test_evaluate_is_the_mean_loss_in_evaluation_mode():
    one = client(validation=(X[:6], Y[:6]))
    _, x = one.initial()
    net = network().eval()
    with torch.no_grad():
        expected = CROSS(net(torch.from_numpy(X[:6])), torch.from_numpy(Y[:6])).item()
    result = one.evaluate(Task(0, "evaluate", {"model": x}))
    assert result.metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert result.weight == 6
    own = client(evaluate_with=lambda module, data: {"training": float(module.training)})
    assert own.evaluate(Task(0, "evaluate", {"model": x})).metrics == {"training": 0.0}


def test_constants_stay_at_home_and_counters_do_not_leak():
    net = network()
    net[5].bias.requires_grad_(False)
    one = client(module=net)
    spec, x = one.initial()
    assert "5.bias" not in [p.name for p in spec.parts]
    one.fit(task(x))
    assert int(net[1].num_batches_tracked) == 6
    one.evaluate(Task(1, "evaluate", {"model": x}))
    assert int(net[1].num_batches_tracked) == 0


def test_diverging_loss_is_a_typed_error():
    one = client(optimizer=partial(torch.optim.SGD, lr=1e30))
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) in step \d"):
        one.fit(task(one.initial()[1]))


def test_clip_bounds_a_step():
    one = client(optimizer=partial(torch.optim.SGD, lr=1.0), clip=0.01, epochs=1, batch=20)
    spec, x = one.initial()
    moved = one.fit(task(x)).vectors["delta"][spec.trainable]
    assert np.linalg.norm(moved) == pytest.approx(0.01, rel=1e-3)


def test_wrong_settings_and_data():
    with pytest.raises(ConfigError, match="a: epochs must be a whole number"):
        client(epochs=0)
    with pytest.raises(DataError, match="equal length"):
        client(data=(X, Y[:3]))
    with pytest.raises(DataError, match="holds no example"):
        client(data=(X[:0], Y[:0]))
    one = client()
    with pytest.raises(LayoutError, match="not float32"):
        one.fit(task(np.zeros(3, np.float32)))
    with pytest.raises(LayoutError, match="float64"):
        FlatModel(network().double())


@pytest.mark.parametrize(("count", "batch"), [(1, 8), (8, 8), (9, 8), (100, 16), (0, 4)])
def test_split_covers_everything_in_even_parts(count, batch):
    parts = list(split(np.arange(count), batch))
    assert sum(map(list, parts), []) == list(range(count))  # noqa: RUF017
    sizes = [len(p) for p in parts]
    assert len(parts) == -(-count // batch)
    assert not sizes or (max(sizes) <= batch and max(sizes) - min(sizes) <= 1)
