"""Was this example trained on? How well updates and the final model tell, in clear, under DP and under encryption.

    python benchmarks/membership.py                 # toy task, all settings
    python benchmarks/membership.py --detector      # and YOLOv5n on real images, see attacks.py
    python benchmarks/membership.py --quick         # one seed, control and null only

The area under the ROC curve (AUC) of each score, members against as many others of the same distribution: 0.5 is a
guess, 1 is certainty. "over" is the control: sites that train until they know their examples by heart; "null" takes
for members what nobody was trained on. An attack that does not find "over", or finds "null", would show nothing.

final     the last model: minus the loss (Yeom et al., Privacy Risk in Machine Learning, 2018); members of all sites
local     one site's last update in the hands of the server: minus the loss of model plus update
drop      the same update: by how much it lowers the loss, summed over the rounds
gradient  the same update: cosine to the example's own descent, summed over the rounds; Melis et al., Exploiting
          Unintended Feature Leakage in Collaborative Learning, 2019, look at updates for the same reason

Under "he" and "secagg" the server sees ciphertexts or masked integers and takes their bytes for values. Under "he" it
sees no model either but the first; under "secagg" it has the models, and what these tell is in "local". The sites have
the model in any case: "final" is theirs, and encryption does not change it.

The toy task: four sites, 30 normal features, two classes by a random direction, three of ten labels wrong, an MLP of
256, so that little can be learnt and much be known by heart. Unit of DP: a site.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from _common import about, append, lines, single_thread
from numpy.typing import NDArray
from torch import nn

import polypfed as pf
from polypfed.clients.flat import FlatModel
from polypfed.core.messages import Reply, Task, Update
from polypfed.core.rundir import load_model
from polypfed.privacy import Ledger, stages
from polypfed.testing.carried import Through

RESULTS = Path(__file__).parent / "results" / "membership"
SITES, MEMBERS, FEATURES, WIDTH, WRONG, WATCHED = 4, 80, 30, 256, 0.3, "s0"
SCORES = ("final", "local", "drop", "gradient")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """One row: how it is trained and what protects it."""

    mode: str = "plain"
    rounds: int = 10
    epochs: int = 1
    multiplier: float = 0.0
    where: str = "server"
    null: bool = False


SETTINGS = {
    "over": Setting(epochs=40),
    "null": Setting(epochs=40, null=True),
    "plain": Setting(),
    "dp, server, z = 0.1": Setting("dp", multiplier=0.1),
    "dp, server, z = 1": Setting("dp", multiplier=1.0),
    "dp, site, z = 0.1": Setting("dp", multiplier=0.1, where="site"),
    "dp, site, z = 1": Setting("dp", multiplier=1.0, where="site"),
    "over, dp, site, z = 1": Setting("dp", epochs=40, multiplier=1.0, where="site"),
    "he": Setting("he"),
    "over, he": Setting("he", epochs=40),
    "secagg": Setting("secagg"),
    "over, secagg": Setting("secagg", epochs=40),
}


def auc(members: Any, others: Any) -> float:
    """The chance that a member scores above another one; ties count half.

    >>> auc([3, 2], [1, 2]), auc([1, 1], [1, 1])
    (0.875, 0.5)
    """
    a, b = np.sort(np.asarray(others, float)), np.asarray(members, float)
    return float((np.searchsorted(a, b, "left") + np.searchsorted(a, b, "right")).mean() / (2 * len(a)))


class Drawn:
    """Examples of one distribution: x (n, 30) float32, y (n,) int64."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.direction = self.draw.normal(0, 1, FEATURES)

    def __call__(self, count: int) -> tuple[Any, Any]:
        x = self.draw.normal(0, 1, (count, FEATURES)).astype(np.float32)
        wrong = self.draw.random(count) < WRONG
        return x, ((x @ self.direction > 0) ^ wrong).astype(np.int64)


@dataclass
class Curious(Through):
    """A backend that keeps what the watched site sent, and the models it was sent."""

    inner: pf.backends.Local = field(default_factory=pf.backends.Local)
    models: list[Any] = field(default_factory=list)
    sent: list[Mapping[str, Any]] = field(default_factory=list)

    def exchange(self, tasks: Mapping[str, Task], deadline: float) -> Iterator[Reply]:
        """Replies as they are."""
        for reply in self.inner.exchange(tasks, deadline):
            if isinstance(reply, Update) and reply.client == WATCHED and tasks[WATCHED].kind == "fit":
                self.sent.append({k: np.array(v) for k, v in reply.vectors.items()})
                self.models.append(np.array(tasks[WATCHED].vectors.get("model", [])))
            yield reply


def seen(vectors: Mapping[str, Any], size: int, scale: float) -> Any:
    """A vector of the model's size, (P,): the update where it is in clear, else all bytes as if they were values."""
    clear = [v for name, v in sorted(vectors.items()) if v.dtype == np.float32 and v.size == size]
    if clear:
        return clear[0].astype(np.float32)
    raw = np.concatenate([v.reshape(-1).view(np.uint8) for _, v in sorted(vectors.items())])
    values = np.resize(raw.astype(np.float32) - 127.5, size)
    return values * np.float32(scale / np.linalg.norm(values))


def losses(net: nn.Module, flat: FlatModel, model: Any, data: tuple[Any, Any]) -> Floats:
    """Of each example, (n,)."""
    flat.load(model)
    with torch.no_grad():
        found = nn.functional.cross_entropy(net(torch.from_numpy(data[0])), torch.from_numpy(data[1]), reduction="none")
    return found.numpy().astype(float)


def cosines(net: nn.Module, flat: FlatModel, model: Any, delta: Any, data: tuple[Any, Any]) -> Floats:
    """Of `delta` and each example's descent, (n,)."""
    flat.load(model)
    named = {k: p.detach() for k, p in net.named_parameters()}

    def one(parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(net, parameters, (x[None],))
        return nn.functional.cross_entropy(out, y[None])

    each = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))
    gradients = each(named, torch.from_numpy(data[0]), torch.from_numpy(data[1]))
    rows = torch.cat([gradients[p.name].flatten(1) for p in flat.spec.parts], dim=1)
    wanted = torch.from_numpy(np.array(delta))
    found = nn.functional.cosine_similarity(-rows, wanted[None])
    return found.numpy().astype(float)


def toy(setting: Setting, seed: int) -> dict[str, Any]:
    """One federation on the toy task, and the AUC of each score."""
    drawn = Drawn(seed)
    data = {f"s{i}": drawn(MEMBERS) for i in range(SITES)}
    others, unseen = drawn(SITES * MEMBERS), drawn(MEMBERS)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    common = {"optimizer": sgd, "epochs": setting.epochs, "batch": 30}
    clients = [pf.clients.TorchClient(n, net, nn.functional.cross_entropy, d, **common) for n, d in data.items()]
    spec, x0 = clients[0].initial()
    flat, backend = clients[0].resident, Curious()
    line = () if setting.mode == "plain" else stages(setting.mode, **_options(setting))  # type: ignore[arg-type]
    fed = pf.Federation(
        clients=clients, strategy=pf.strategies.FedAvg(reducer=pf.Mean("uniform")), stages=line, seed=seed,
        evaluate="global" if setting.mode == "he" else "off", seeded_noise=setting.mode == "dp", quorum=SITES,
        budget=Ledger(epsilon=math.inf, delta=1e-5) if setting.mode == "dp" else None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        history = fed.run(setting.rounds, backend, Path(folder) / "run")
        model = history.model
        if model is None:
            model = load_model(Path(folder) / "run" / "sites" / WATCHED / "model.safetensors")[1]
    everyone = tuple(np.concatenate([d[i] for d in data.values()]) for i in range(2))
    inside, outside = (unseen, others) if setting.null else (data[WATCHED], others)
    all_inside = drawn(SITES * MEMBERS) if setting.null else everyone
    models = [m if m.size == spec.size else x0 for m in backend.models]  # a server under "he" knows the first one
    scale = 0.05 * float(np.linalg.norm(x0))
    deltas = [seen(v, spec.size, scale) for v in backend.sent]

    def scored(some: tuple[Any, Any]) -> dict[str, Floats]:
        loss = partial(losses, net, flat, data=some)
        pairs = list(zip(models, deltas, strict=True))
        return {
            "local": -loss(model=pairs[-1][0] + pairs[-1][1]),
            "drop": np.sum([loss(model=m) - loss(model=m + d) for m, d in pairs], axis=0),
            "gradient": np.sum([cosines(net, flat, m, d, some) for m, d in pairs], axis=0),
        }

    ours, theirs = scored(inside), scored(outside)
    found = {name: auc(ours[name], theirs[name]) for name in ours}
    found["final"] = auc(-losses(net, flat, model, all_inside), -losses(net, flat, model, outside))
    flat.load(model)
    with torch.no_grad():
        right = net(torch.from_numpy(others[0])).argmax(1).numpy() == others[1]
    return found | {"accuracy": float(right.mean()), "epsilon": history.values("epsilon").get(setting.rounds)}


def _options(setting: Setting) -> dict[str, Any]:
    if setting.mode == "dp":
        return {"norm": 1.0, "multiplier": setting.multiplier, "where": setting.where}
    return {"cap": None}


def detector(given: argparse.Namespace) -> dict[str, Any]:
    """The federation of attacks.py after its honest rounds: final model, and the next update of one centre."""
    import attacks

    from polypfed.clients.detector_client import _AS_IT_IS, _resident
    from polypfed.clients.frames import Batches
    from polypfed.clients.isolation import isolated

    data = attacks.data_folder()
    weights = data / "weights" / "yolov5n_coco_fp16.npz"
    settings = {"attack": "none", "reducer": "mean", "seed": 0, "images": given.images, "honest": given.honest}
    settings |= {"imgsz": 160, "batch": 8, "lr": 1e-3 / 3, "warm": str(weights) if weights.exists() else None}
    made = attacks.sites(data, given.work, given.images, 0)
    _, x = attacks.start(settings, made, given.work)
    clients = attacks.clients_of(made, given.work, settings)
    watched = next(c for c in clients if c.name == "polypgen_c1")
    task = Task(1, "fit", {"model": x}, {"seed": 1, "strategy": {"name": "fedavg"}})
    local = x + watched.fit(task).vectors["delta"]

    def loss(model: Any, client: Any, part: Any) -> Floats:
        flat, frames = _resident(client.arch), client._open(part)
        flat.load(model)
        module: Any = flat.module.eval()
        found = []
        with isolated(0, 1), torch.no_grad():
            for i in range(len(frames)):
                (batch,) = Batches(frames, np.array([i]), _AS_IT_IS).epoch(1, np.random.default_rng(0))
                found.append(float(module.loss(batch)[0].sum()))
        return np.array(found)

    before = {(c.name, p): loss(x, c, p) for c in clients for p in ("train", "val")}
    after = {p: loss(local, watched, p) for p in ("train", "val")}
    final = [np.concatenate([-before[c.name, p] for c in clients]) for p in ("train", "val")]
    drop = [before[watched.name, p] - after[p] for p in ("train", "val")]
    return {"final": auc(*final), "local": auc(-after["train"], -after["val"]), "drop": auc(*drop)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line per setting, means and standard deviations over the seeds."""
    named: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        named.setdefault(row["setting"], []).append(row)
    out = ["| setting | final | local | drop | gradient | accuracy | epsilon | seeds |", "|---|" + "---:|" * 7]
    for name, some in named.items():
        cells = [_spread([r[s] for r in some if s in r]) for s in (*SCORES, "accuracy")]
        spent = f"{some[0]['epsilon']:.1f}" if some[0].get("epsilon") else ""
        out.append(f"| {name} | {' | '.join(cells)} | {spent} | {len(some)} |")
    last = rows[-1]
    versions = ", ".join(f"{k} {v}" for k, v in last["versions"].items())
    out += [
        "",
        "AUC: mean ± standard deviation over the seeds.",
        "",
        f"{last['date'][:10]}, {last['cpu']}; {versions}.",
    ]
    return "\n".join(out) + "\n"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    options.add_argument("--quick", action="store_true")
    options.add_argument("--detector", action="store_true")
    options.add_argument("--images", type=int, default=100, help="of attacks.py")
    options.add_argument("--honest", type=int, default=5, help="of attacks.py")
    options.add_argument("--work", type=Path, default=Path("runs/attacks"))
    options.add_argument("--out", type=Path, default=RESULTS)
    given = options.parse_args()
    single_thread()
    torch.set_num_threads(1)
    if given.quick:
        given.seeds, given.settings = [0], ["over", "null"]
    path = given.out / "points.jsonl"
    for name in given.settings:
        for seed in given.seeds:
            if (name, seed) not in {(r["setting"], r["seed"]) for r in map(json.loads, lines(str(path)))}:
                row = toy(SETTINGS[name], seed)
                append(path, [about("membership", ("polypfed", "numpy", "torch"), setting=name, seed=seed) | row])
                print(name, seed, {k: v and round(v, 3) for k, v in row.items()}, flush=True)
    if given.detector:
        row = detector(given)
        append(path, [about("membership", ("polypfed", "numpy", "torch"), setting="YOLOv5n, plain", seed=0) | row])
    text = table([json.loads(line) for line in lines(str(path))])
    (given.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
