"""FedBN and FedPer: what stays at a site never leaves it, and the rest is shared as ever."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import Evaluation, Failure, Federation, NumpyClient, Task, Update
from polypfed.backends import Local
from polypfed.core.errors import ConfigError
from polypfed.core.files import read_framed
from polypfed.core.messages import encode
from polypfed.core.model import ModelSpec
from polypfed.core.pack import unpack_inner, unpack_state
from polypfed.strategies import Ditto, FedAdam, FedAvg, FedBN, FedNova, FedPer, KeepBest, Scaffold, Strategy
from polypfed.strategies.base import uploads
from polypfed.testing import SampleClient, sample_sites
from polypfed.testing.carried import Carried
from tests.problems import Quadratic, bits

SPEC, START = SampleClient("a").initial()
BN = {p.name for p in SPEC.parts if p.name.startswith("backbone.1.")}
HEAD = {"head.weight"}


@pytest.mark.parametrize(
    ("strategy", "kept"),
    [
        (FedBN(), BN),
        (FedPer(), HEAD),
        (FedPer(local=("neck", "head")), HEAD | {"neck.weight"}),
        (FedPer(local=("*.bias", "head.*")), HEAD | {"backbone.1.bias"}),
        (FedPer(inner=FedBN()), HEAD | BN),
        (FedBN(inner=FedPer(inner=Scaffold())), HEAD | BN),
        (FedBN(inner=KeepBest(inner=FedPer())), HEAD | BN),
    ],
)
def test_local_parts_never_leave_the_site(strategy: Strategy, kept: set[str]) -> None:
    """Everything the backend carried, both ways and as bytes, beside every value the sites kept to themselves."""
    clients, backend = sample_sites(), Carried()
    sites: dict[str, Any] = {}

    def watch(event: Any) -> None:
        sites.update({name: site._work for name, site in backend.inner._sites.items()})

    history = Federation(clients=clients, strategy=strategy).run(4, backend, listen=watch)
    assert history.spec is not None
    assert {p.name for p in history.spec.parts} == {p.name for p in SPEC.parts} - kept
    wire = history.spec
    lengths = {"delta": wire.size, **uploads(strategy, wire.boundary)}
    fits = [r for r in backend.replies if isinstance(r, Update)]
    assert len(fits) == 24
    assert all({k: v.size for k, v in r.vectors.items()} == lengths for r in fits)
    assert all(t.vectors["model"].size == wire.size for _, t in backend.tasks)
    carried = b"".join(encode(m) for m in [*fits, *(t for _, t in backend.tasks)])
    for site in sites.values():
        own = site._mine
        assert own.size == SPEC.size - wire.size
        for value in own[np.abs(own) > 1e-3]:  # four random bytes: no such float32 is anywhere on the wire
            assert value.tobytes() not in carried or value in (np.float32(1), START)


@pytest.mark.parametrize("inner", [FedAvg(), FedAdam(), FedNova(), Scaffold()], ids=lambda s: type(s).__name__)
def test_the_shared_part_is_trained_as_if_the_rest_were_not_there(inner: Strategy) -> None:
    """Separable losses: sharing one of two values is a federation of the one beside local descent on the other."""
    rng = np.random.default_rng(5)
    a, b = rng.uniform(0.5, 2, (3, 2)), rng.normal(size=(3, 2))

    def whole() -> list[Any]:
        return [TwoParts(f"s{i}", a[i], b[i], steps=2 + i) for i in range(3)]

    shared = [NumpyClient(f"s{i}", Quadratic(a[i, 0], b[i, 0]), [0.5], steps=2 + i, weight=3 + i) for i in range(3)]
    clients = whole()
    backend = Local()
    found = Federation(clients=clients, strategy=FedPer(inner=inner), evaluate="off").run(4, backend).model
    wanted = Federation(clients=shared, strategy=inner, evaluate="off").run(4, Local()).model
    assert found == pytest.approx(wanted, abs=1e-6)
    for i, client in enumerate(clients):
        alone = b[i, 1] + (1 - 0.1 * a[i, 1]) ** (4 * (2 + i)) * (-0.25 - b[i, 1])
        assert client.last[1] == pytest.approx(alone, abs=1e-5)


class TwoParts:
    """A model of "shared" and "head", one value each, on NumpyClient's training; remembers the last local model."""

    def __init__(self, name: str, a: Any, b: Any, steps: int) -> None:
        self.name, self.weight = name, steps + 1
        self._inner = NumpyClient(
            name,
            lambda x: a.astype(np.float32) * (x - b.astype(np.float32)),
            [0.5, -0.25],
            steps=steps,
            weight=steps + 1,
        )
        self._inner.initial = self.initial  # type: ignore[method-assign]

    def initial(self) -> Any:
        arrays = {"shared": np.array([0.5]), "head": np.array([-0.25])}
        spec = ModelSpec.of(arrays, group=lambda name: name)
        return spec, spec.pack(arrays)

    def fit(self, task: Task) -> Update:
        update = self._inner.fit(task)
        self.last = task.vectors["model"] + update.vectors["delta"]
        return update

    def evaluate(self, task: Task) -> Evaluation:
        return self._inner.evaluate(task)

    def state(self) -> bytes:
        return self._inner.state()

    def restore(self, state: bytes) -> None:
        self._inner.restore(state)


def test_a_site_that_joins_late_starts_from_the_initial_own_part() -> None:
    clients, backend = sample_sites(), Carried()
    fed = Federation(clients=clients, strategy=FedBN(), per_round=1, seed=1)
    own: dict[str, Any] = {}

    def watch(event: Any) -> None:
        if event.kind == "saved":
            own.update({n: s._work._mine.copy() for n, s in backend.inner._sites.items()})

    fed.run(2, backend, listen=watch)
    asked = {n for n, t in backend.tasks if t.kind == "fit"}
    first = START[SPEC.places(BN)]
    for name, mine in own.items():
        assert np.array_equal(mine, first) == (name not in asked)


def test_each_site_is_scored_with_its_own_part(tmp_path: Path) -> None:
    history = Federation(clients=sample_sites(3), strategy=FedPer()).run(3, Local(), tmp_path)
    assert history.model is not None
    for client in sample_sites(3):
        [path] = sorted((tmp_path / "sites" / client.name / "state").iterdir())[-1:]
        own = unpack_state(read_framed(path)[1])["own"]
        full = np.empty(SPEC.size, np.float32)
        head = SPEC.places(HEAD)
        full[head], full[np.setdiff1d(np.arange(SPEC.size), head)] = own, history.model
        wanted = client.evaluate(Task(3, "evaluate", {"model": full})).metrics["loss"]
        assert history.values("loss", client.name)[3] == pytest.approx(wanted)


def test_a_lost_update_takes_the_own_part_back() -> None:
    """R6: the site's head of a round that did not count is dropped with the update."""

    def lose(reply: Any) -> Any:
        if isinstance(reply, Update) and reply.client == "site-01" and reply.round == 2:
            return Failure(reply.client, 2, "lost", "", reply.run)
        return reply

    seen: dict[int, Any] = {}
    backend = Carried(lose)

    def watch(event: Any) -> None:
        if event.kind == "saved":
            seen[event.round] = backend.inner._sites["site-01"]._work._mine.copy()

    Federation(clients=sample_sites(3), strategy=FedPer()).run(2, backend, listen=watch)
    assert np.array_equal(seen[2], seen[1])
    assert not np.array_equal(seen[1], seen[0])


def test_sites_that_share_a_torch_module_do_not_inherit_each_other_s_part() -> None:
    """The own part of a site starts from the module's weights before anybody trained on it."""
    torch = pytest.importorskip("torch")
    from polypfed.clients import TorchClient

    nn = torch.nn
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    first = net[1].bias.detach().numpy().copy()
    rng = np.random.default_rng(0)
    sgd = partial(torch.optim.SGD, lr=0.5)

    def clients(module: Any) -> list[Any]:
        return [
            TorchClient(
                f"s{i}", module, nn.functional.cross_entropy, (rng.normal(size=(8, 3)).astype(np.float32), [i] * 8), sgd
            )
            for i in range(2)
        ]

    two = clients(net)
    backend, start = Carried(), two[0].initial()[1]
    Federation(clients=two, strategy=FedBN(), evaluate="off", per_round=1, seed=1).run(1, backend)
    trained = next(n for n, t in backend.tasks if t.kind == "fit")
    idle = next(c for c in two if c.name != trained)
    assert not np.array_equal(net[1].bias.detach().numpy(), first)
    made = FedBN().at_site(idle)
    assert np.array_equal(made.own(np.zeros(made._shared.size, np.float32))[made._own], start[made._own])  # type: ignore[attr-defined]
    assert np.array_equal(two[1].initial()[1], start)
    again = [Federation(clients=clients(net), strategy=FedBN(), evaluate="off").run(1, Local()) for _ in range(2)]
    assert again[0].model is not None  # and a second run with the same module starts where the first did
    assert again[0].model.size == again[1].model.size  # type: ignore[union-attr]


def test_worker_processes_and_restarts_give_the_same_bits(tmp_path: Path) -> None:
    def fed() -> Federation:
        return Federation(clients=sample_sites(4), strategy=FedPer(inner=Ditto(inner=Scaffold())), per_round=3)

    straight = fed().run(4, Local())
    fed().run(2, Local(), tmp_path)
    assert bits(fed().resume(tmp_path, 4, Local(workers=2))) == bits(straight)


def test_the_groups_of_detectors_partition_the_keys() -> None:
    """T31: the head is the last module whatever its number, in v5, v8 and v11."""
    torch = pytest.importorskip("torch")
    if find_spec("ultralytics") is None:
        pytest.skip("ultralytics is not installed")

    from polypfed.clients.flat import FlatModel
    from polypfed.detect import yolo
    from polypfed.detect.offline import ultralytics

    ultralytics()  # silenced, and without its print options
    from ultralytics.nn.tasks import DetectionModel

    heads = set()
    for arch in ("yolov5n", "yolov8n", "yolo11n"):
        with torch.random.fork_rng(devices=[]):
            model = DetectionModel(f"{arch}.yaml", nc=1, verbose=False)
        spec = FlatModel(model, yolo.group).spec
        groups = {g: {p.name for p in spec.parts if p.group == g} for g in ("backbone", "neck", "head")}
        assert set.union(*groups.values()) == {p.name for p in spec.parts}
        assert sum(map(len, groups.values())) == len(spec.parts)
        assert {type(model.model[int(n.split(".")[1])]).__name__ for n in groups["head"]} == {"Detect"}
        heads |= {n.split(".")[1] for n in groups["head"]}
        assert FedPer().names(spec) == groups["head"]
        assert FedPer(local=("neck", "head")).names(spec) == groups["neck"] | groups["head"]
        norms = {n for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
        assert {n.rpartition(".")[0] for n in FedBN().names(spec)} == norms
    assert len(heads) == 3  # another number in each, so no fixed one would do


@pytest.mark.parametrize(
    ("strategy", "problem"),
    [
        (
            FedPer(local=("classifier",)),
            r"'classifier' fits no part .*\['backbone', 'head', 'neck'\]",
        ),
        (FedPer(local=("*",)), "no trainable array is left to share"),
        (FedPer(local=("backbone", "neck", "head")), "no trainable array is left to share"),
        (Ditto(inner=FedPer()), r"FedBN and FedPer go outside: FedPer\(inner=Ditto\(\)\)"),
        (Ditto(inner=KeepBest(inner=FedBN())), "FedBN and FedPer go outside"),
    ],
)
def test_what_cannot_work_is_refused_before_round_one(strategy: Strategy, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Federation(clients=sample_sites(), strategy=strategy).run(1, Local())


def test_a_model_without_batchnorm_and_lists_that_are_none() -> None:
    with pytest.raises(ConfigError, match="the model has no BatchNorm layer"):
        Federation(clients=[NumpyClient("a", Quadratic(1, 1), [0.0])], strategy=FedBN()).run(1, Local())
    for wrong in ((), "head", ("",), (1,), None, 3):
        with pytest.raises(ConfigError, match=r"^local: .* is not a list of names"):
            FedPer(local=wrong)  # type: ignore[arg-type]
    assert FedPer(local=["head"]) == FedPer(local=("head",))  # type: ignore[arg-type]


def test_a_layer_at_the_top_of_the_model_is_found() -> None:
    arrays = {"weight": np.ones(2), "running_mean": np.zeros(2), "fc.weight": np.ones(3)}
    spec = ModelSpec.of(arrays, ["running_mean"])
    assert FedBN().names(spec) == {"weight", "running_mean"}


def test_the_state_of_what_is_wrapped_is_in_the_site_s_state() -> None:
    client = FedBN(inner=Scaffold()).at_site(SampleClient("a"))
    assert set(unpack_state(client.state())) == {"own"}
    assert unpack_inner(client.state()) == b""
