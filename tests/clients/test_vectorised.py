"""Clients trained as one program against the same clients trained one after the other."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import polypfed as pf
from polypfed import Federation, strategies
from polypfed.clients import NumpyClient, TorchClient, Vectorised
from polypfed.clients import vectorised as module_under_test
from polypfed.clients.site import Site
from polypfed.core.errors import ConfigError
from polypfed.core.messages import Failure, Reply, Task, Update
from polypfed.strategies import Registry

CROSS = nn.functional.cross_entropy
RNG = np.random.default_rng(5)
X = RNG.normal(size=(6, 24, 1, 8, 8)).astype(np.float32)
Y = RNG.integers(0, 4, (6, 24))


def cnn() -> nn.Module:
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 3)]
    return nn.Sequential(*body, nn.SiLU(), nn.Flatten(), nn.Linear(24, 4))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.LayerNorm(12), nn.Linear(12, 4))


class Tied(nn.Module):
    """One weight used twice, a constant parameter, a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 4)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.full((64,), 0.5), requires_grad=False)
        self.register_buffer("shift", torch.ones(64), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.sigmoid(self.first(x.flatten(1))) * self.scale + self.shift
        return self.last(torch.sigmoid(self.second(hidden)))


MODELS = {"cnn": cnn, "mlp": mlp, "tied": Tied}


def clients(make: Any = mlp, count: int = 6, lr: float = 0.1, examples: int = 24, **settings: Any) -> list[TorchClient]:
    """Sites over one module."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make()
    momentum = {k: settings.pop(k) for k in ("momentum", "weight_decay", "nesterov") if k in settings}
    settings = {"optimizer": partial(torch.optim.SGD, lr=lr, **momentum), "epochs": 2, "batch": 8} | settings
    return [TorchClient(f"s{k}", module, CROSS, (X[k, :examples], Y[k, :examples]), **settings) for k in range(count)]


def run(sites: Sequence[Any], vectorised: bool, rounds: int = 3, **settings: Any) -> Any:
    settings = {"strategy": strategies.FedAvg(), "evaluate": "off"} | settings
    return Federation(clients=sites, **settings).run(rounds, pf.backends.Local(vectorised=vectorised))


def tasks(sites: Sequence[TorchClient], number: int = 1, **config: Any) -> dict[str, Task]:
    x = sites[0].initial()[1]
    return {
        c.name: Task(number, "fit", {"model": x}, {"seed": 10 * number + k, "run": "r", **config})
        for k, c in enumerate(sites)
    }


def together(sites: Sequence[TorchClient], asked: Mapping[str, Task] | None = None) -> dict[str, Reply]:
    found = Vectorised(sites).perform({c.name: Site(c) for c in sites}, tasks(sites) if asked is None else asked)
    return {reply.client: reply for reply in found}


def one_by_one(sites: Sequence[TorchClient], asked: Mapping[str, Task] | None = None) -> dict[str, Update]:
    asked = tasks(sites) if asked is None else asked
    return {c.name: c.fit(asked[c.name]) for c in sites if c.name in asked}


PROX, SCAFFOLD, WHOLE = strategies.FedProx(mu=0.3), strategies.Scaffold(), strategies.Scaffold(option="I")


@pytest.mark.parametrize(
    ("model", "strategy"),
    [(m, s) for m in MODELS for s in (strategies.FedAvg(), PROX, SCAFFOLD, WHOLE) if m == "mlp" or s is SCAFFOLD],
)
def test_a_run_ends_at_the_same_weights(model, strategy):
    settings = {"strategy": strategy, "per_round": 4}
    sites = partial(clients, MODELS[model], examples=23)  # batches of 8, 8 and 7
    alone, joint = run(sites(), False, **settings), run(sites(), True, **settings)
    start = sites()[0].initial()[1]
    moved = np.linalg.norm(alone.model - start)
    assert moved > 0.05
    assert np.linalg.norm(joint.model - alone.model) < 2e-5 * moved
    ours, theirs = ([r for r in h.rows if r["metric"] in ("loss", "weight", "images")] for h in (joint, alone))
    assert [(r["site"], r["metric"]) for r in ours] == [(r["site"], r["metric"]) for r in theirs]
    assert [r["value"] for r in ours] == pytest.approx([r["value"] for r in theirs], rel=1e-4)


@pytest.mark.parametrize(
    ("strategy", "sgd"),
    [
        (strategies.FedAvg(), {"momentum": 0.9, "nesterov": True}),
        (strategies.Scaffold(), {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
        (strategies.FedNova(), {"momentum": 0.5}),
        (strategies.FedAvg(), {"weight_decay": 0.1}),
    ],
)
def test_momentum_and_weight_decay_are_those_of_torch(strategy, sgd):
    alone = run(clients(lr=0.05, **sgd), False, strategy=strategy)
    joint = run(clients(lr=0.05, **sgd), True, strategy=strategy)
    assert joint.model == pytest.approx(alone.model, abs=2e-5)
    plain = run(clients(lr=0.05), True, strategy=strategy)
    assert np.abs(plain.model - joint.model).max() > 1e-3  # so the setting had a part in it


def test_updates_agree_one_by_one_and_each_client_draws_its_own_order():
    joint, alone = together(clients()), one_by_one(clients())
    for name, update in joint.items():
        assert isinstance(update, Update)
        assert update.vectors["delta"] == pytest.approx(alone[name].vectors["delta"], abs=1e-6)
        assert (update.weight, update.round, update.run) == (24, 1, "r")
        assert set(update.metrics) == set(alone[name].metrics)
        assert update.metrics["loss"] == pytest.approx(alone[name].metrics["loss"], rel=1e-5)
    same = clients()
    for client in same:
        client._train = same[0]._train
    deltas = {update.vectors["delta"].tobytes() for update in together(same).values()}
    assert len(deltas) == 6


def test_what_a_rule_keeps_is_what_it_would_keep_alone():
    config = {"strategy": Registry.describe(strategies.Scaffold())}
    zero = np.zeros(clients()[0].initial()[0].boundary, np.float32)
    found = []
    for trainer in (together, one_by_one):
        sites = clients()
        asked = {n: Task(1, "fit", {**t.vectors, "c": zero}, t.config) for n, t in tasks(sites, **config).items()}
        replies = trainer(sites, asked)
        found.append(({n: u.vectors["dc"] for n, u in replies.items()}, {c.name: c._kept["c_i"] for c in sites}))
    for name in found[0][0]:
        assert found[0][0][name] == pytest.approx(found[1][0][name], abs=2e-5)
        assert found[0][1][name] == pytest.approx(found[1][1][name], abs=2e-5)
        assert np.abs(found[0][1][name]).max() > 1e-2


def test_the_same_run_gives_the_same_bits_and_so_does_one_in_two_parts(tmp_path: Path):
    fed = partial(Federation, strategy=strategies.Scaffold(), per_round=4, keep_best="-loss", seed=3)
    whole = fed(clients=clients()).run(4, pf.backends.Local(vectorised=True))
    again = fed(clients=clients()[::-1]).run(4, pf.backends.Local(vectorised=True))
    assert whole.model.tobytes() == again.model.tobytes()
    fed(clients=clients()).run(2, pf.backends.Local(vectorised=True), tmp_path)
    second = fed(clients=clients()).resume(tmp_path, 4, pf.backends.Local(vectorised=True))
    assert whole.model.tobytes() == second.model.tobytes()
    assert whole.best.tobytes() == second.best.tobytes()


def test_a_recorded_program_gives_the_bits_of_the_one_it_records():
    recorded = together(clients(cnn))
    sites = clients(cnn)
    trainer = Vectorised(sites)
    trainer._gradient._programs = Unrecorded(trainer._gradient.recorded)
    replies = trainer.perform({c.name: Site(c) for c in sites}, tasks(sites))
    for reply in replies:
        assert reply.vectors["delta"].tobytes() == recorded[reply.client].vectors["delta"].tobytes()


class Unrecorded(dict):
    """Programs by shape that are the live function whatever the shape."""

    def __init__(self, live: Any) -> None:
        super().__init__()
        self.live = live

    def __contains__(self, key: Any) -> bool:
        return True

    def __getitem__(self, key: Any) -> Any:
        return self.live

    def move_to_end(self, key: Any) -> None:
        pass


def test_more_clients_than_one_program_takes(monkeypatch):
    monkeypatch.setattr(module_under_test, "TOGETHER", 4)
    assert Vectorised(clients()).groups(tasks(clients())) == [["s0", "s1", "s2"], ["s3", "s4", "s5"]]
    joint, alone = run(clients(), True), run(clients(), False)
    assert joint.model == pytest.approx(alone.model, abs=1e-5)


def test_one_client_alone_and_asynchronous_rounds():
    assert run(clients(count=1), True).model == pytest.approx(run(clients(count=1), False).model, abs=1e-5)
    settings = {"strategy": strategies.FedBuff(buffer=3), "per_round": 4}
    joint, alone = run(clients(), True, **settings), run(clients(), False, **settings)
    assert joint.model == pytest.approx(alone.model, abs=1e-5)


def good(replies: Mapping[str, Reply], but: str) -> dict[str, bytes]:
    return {n: r.vectors["delta"].tobytes() for n, r in replies.items() if n != but}


def test_a_client_whose_loss_explodes_fails_alone():
    bad = clients()
    bad[2]._train[0][5] = float("inf")
    replies = together(bad)
    failure = replies["s2"]
    assert isinstance(failure, Failure)
    assert failure.reason == "client"
    with pytest.raises(pf.core.errors.PolypfedError) as alone:
        one_by_one(bad[2:3], {"s2": tasks(bad)["s2"]})
    assert failure.detail == str(alone.value)
    assert good(replies, "s2") == good(together(clients()), "s2")  # to the bit


def test_a_client_whose_rule_fails_fails_alone(monkeypatch):
    rule = strategies.FedProx(mu=0.1).local_rule()
    direction = type(rule).direction

    def breaks(self: Any, gradient: Any, y: Any) -> Any:
        breaks.calls += 1
        if breaks.calls == 9:  # the second step of six clients
            raise ZeroDivisionError("no way down")
        return direction(self, gradient, y)

    config = {"strategy": Registry.describe(strategies.FedProx(mu=0.1))}
    sites = clients()
    whole = together(sites, tasks(sites, **config))
    breaks.calls = 0
    monkeypatch.setattr(type(rule), "direction", breaks)
    replies = together(sites, tasks(sites, **config))
    assert [n for n, r in replies.items() if isinstance(r, Failure)] == ["s2"]
    assert replies["s2"].reason == "crashed"
    assert "no way down" in replies["s2"].detail
    assert good(replies, "s2") == good(whole, "s2")


def test_data_that_break_the_program_cost_their_owner_only(caplog):
    bad = clients()
    bad[4]._train[1][7] = 99  # no such class
    with caplog.at_level(logging.WARNING):
        replies = together(bad)
    assert "the joint program failed" in caplog.text
    assert [n for n, r in replies.items() if isinstance(r, Failure)] == ["s4"]
    alone = one_by_one(clients())
    for name in set(replies) - {"s4"}:
        assert replies[name].vectors["delta"].tobytes() == alone[name].vectors["delta"].tobytes()


def test_a_client_that_lost_its_state_and_one_that_gets_a_wrong_model_fail_alone():
    sites = clients()
    shells = {c.name: Site(c) for c in sites}
    trainer = Vectorised(sites)
    list(trainer.perform(shells, tasks(sites, strategy=Registry.describe(strategies.FedAvg()))))
    asked = tasks(sites, 2, accepted=1)
    asked["s1"] = Task(2, "fit", asked["s1"].vectors, {**asked["s1"].config, "accepted": 7})
    asked["s3"] = Task(2, "fit", {"model": np.zeros(3, np.float32)}, asked["s3"].config)
    replies = {r.client: r for r in trainer.perform(shells, asked)}
    assert {n: r.reason for n, r in replies.items() if isinstance(r, Failure)} == {"s1": "state", "s3": "client"}
    assert len(replies) == 6


def test_the_deadline_counts_before_a_group_begins():
    backend = pf.backends.Local(vectorised=True)
    sites = clients()
    backend.host(sites, None)
    assert {r.reason for r in backend.exchange(tasks(sites), -1.0)} == {"deadline"}
    assert {type(r) for r in backend.exchange(tasks(sites), 60.0)} == {Update}
    backend.close()


def test_generators_gradients_and_evaluation_are_left_alone():
    sites = clients()
    torch.manual_seed(1)
    expected = torch.rand(1).item()
    torch.manual_seed(1)
    together(sites)
    assert torch.rand(1).item() == expected
    assert all(p.grad is None for p in sites[0].module.parameters())
    a = Federation(clients=sites, keep_best="-loss").run(2, pf.backends.Local(vectorised=True))
    b = Federation(clients=clients(), keep_best="-loss").run(2, pf.backends.Local())
    ours, theirs = (
        sorted((r["round"], r["site"], r["value"]) for r in h.rows if r["metric"] == "loss") for h in (a, b)
    )
    assert [r[2] for r in ours] == pytest.approx([r[2] for r in theirs], rel=1e-4)


def other(**settings: Any) -> list[TorchClient]:
    """Three clients of which the last is different."""
    first, second = clients(count=2)
    fields = {"module": first.module, "loss": CROSS, "data": (X[2], Y[2]), "optimizer": first.optimizer}
    fields |= {"epochs": 2, "batch": 8}
    return [first, second, TorchClient("s2", **(fields | settings))]


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.inner(x), 0.5, self.training)


class Branching(Noisy):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) if x.sum() > 0 else self.inner(-x)


class Unused(Noisy):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Counting(Noisy):
    """Not a pure function: its first call differs from its second."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.inner(x) * self.calls


def wide(middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), middle, nn.Linear(8, 4))


REFUSED = {
    "its number of examples is 20, that of s0 is 24": lambda: other(data=(X[2, :20], Y[2, :20])),
    "its batch is 7": lambda: other(batch=7),
    "its epochs is 1": lambda: other(epochs=1),
    "its threads is 2": lambda: other(threads=2),
    "its data is": lambda: other(data=(X[2, ..., :7], Y[2])),
    "its loss is not the one of s0": lambda: other(loss=lambda a, b: CROSS(a, b)),
    "it does not share the module of s0": lambda: other(module=mlp()),
    "its optimiser is SGD": lambda: other(optimizer=partial(torch.optim.SGD, lr=0.2)),
    "its optimiser is Adam, not one plain SGD": lambda: other(optimizer=torch.optim.Adam),
    "its clip is 1.0": lambda: other(clip=1.0),
    "s0: cannot be vectorised: it clips gradients": lambda: clients(clip=1.0),
    "SGD has dampening": lambda: clients(optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.5, dampening=0.1)),
    "2 keeps running statistics": lambda: clients(lambda: wide(nn.BatchNorm1d(8))),
    "2 draws dropout": lambda: clients(lambda: wide(nn.Dropout(0.1))),
    "torch.func does not take the module or the loss .*random": lambda: clients(Noisy),
    "torch.func does not take the module or the loss": lambda: clients(Branching),
    "spare.weight has no part in the loss": lambda: clients(Unused),
    "the joint gradient of .* is not the one computed alone": lambda: clients(Counting),
    "n: cannot be vectorised: it is a NumpyClient": lambda: [NumpyClient("n", lambda x: x, [0.0])],
}


@pytest.mark.parametrize("problem", REFUSED)
def test_who_cannot_be_vectorised_is_refused_before_training(problem):
    sites = REFUSED[problem]()
    events: list[Any] = []
    fed = Federation(clients=sites, evaluate="off")
    with pytest.raises(ConfigError, match=problem) as refused:
        fed.run(1, pf.backends.Local(vectorised=True), listen=events.append)
    assert "cannot be vectorised" in str(refused.value)
    assert not events


def test_a_buffer_and_a_parameter_frozen_later_are_refused():
    class Buffered(Unused):
        def __init__(self) -> None:
            super().__init__()
            del self.spare
            self.register_buffer("table", torch.ones(3))

    with pytest.raises(ConfigError, match="the buffer table"):
        Vectorised(clients(Buffered))
    sites = clients()
    sites[0].module[1].bias.requires_grad_(False)
    with pytest.raises(ConfigError, match="frozen after"):
        Vectorised(sites)


def test_dropout_that_never_drops_and_norms_without_statistics_are_welcome():
    def harmless() -> nn.Module:
        return nn.Sequential(wide(nn.Dropout(0.0)), nn.BatchNorm1d(4, track_running_stats=False))

    joint, alone = together(clients(harmless)), one_by_one(clients(harmless))
    assert joint["s1"].vectors["delta"] == pytest.approx(alone["s1"].vectors["delta"], abs=1e-5)


@pytest.mark.parametrize("strategy", [strategies.FedPer(local=("4.*",)), strategies.Ditto()], ids=["fedper", "ditto"])
def test_a_strategy_with_clients_of_its_own_is_refused_before_training(strategy):
    with pytest.raises(ConfigError, match=r"(fedper|ditto) trains more at a site"):
        run(clients(), True, strategy=strategy)


def test_together_means_one_process():
    with pytest.raises(ConfigError, match=r"^vectorised: "):
        pf.backends.Local(workers=2, vectorised=True)
