"""A small federation that every strategy can train: quadratic losses, three groups, a BatchNorm layer."""

from dataclasses import dataclass, field

import numpy as np

from polypfed.clients.base import Client
from polypfed.core.messages import Evaluation, Task, Update
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.pack import pack_state, unpack_state
from polypfed.core.seeds import generator
from polypfed.strategies.base import wants
from polypfed.strategies.local import rule_of


@dataclass
class SampleClient:
    """A site with the loss sum a/2 (x - b)^2 over all trainable values, and statistics of its own.

    Its model has the groups "backbone", "neck" and "head", a BatchNorm layer in the first, and an integer counter. The
    optimum, the curvature, the number of steps and of examples come from `number`; each gradient is noisy by the
    task's seed, as that of a mini-batch is.

    Args:
        name: the site.
        number: which of the sites; equal numbers have equal losses.
        noise: standard deviation of the gradient's noise.
    """

    name: str
    number: int = 0
    noise: float = 0.01
    lr: float = 0.1
    _kept: dict[str, Vector] = field(default_factory=dict, repr=False)

    @property
    def steps(self) -> int:
        """Local steps in a round."""
        return 1 + self.number % 3

    @property
    def weight(self) -> int:
        """Examples trained on."""
        return 7 + 13 * self.number

    def initial(self) -> tuple[ModelSpec, Vector]:
        """The layout and the start, (13,): 9 trainable values and 4 statistics."""
        arrays = {
            "backbone.0.weight": np.array([0.3, -0.7]),
            "backbone.1.weight": np.ones(2),
            "backbone.1.bias": np.zeros(2),
            "backbone.1.running_mean": np.zeros(2),
            "backbone.1.running_var": np.ones(2),
            "backbone.1.num_batches_tracked": np.array(0),
            "neck.weight": np.array([0.1]),
            "head.weight": np.array([-0.2, 0.9]),
        }
        behind = ["backbone.1.running_mean", "backbone.1.running_var"]
        spec = ModelSpec.of(arrays, behind, group=lambda name: name.partition(".")[0])
        return spec, spec.pack(arrays)

    def fit(self, task: Task) -> Update:
        """Local steps, bent by the strategy's client half; the statistics move half way to the site's own."""
        spec, x = self.initial()[0], task.vectors["model"]
        start, rule, rng = x[spec.trainable], rule_of(task.config, spec), generator(task.seed, "noise")
        shared = {name: vector for name, vector in task.vectors.items() if name != "model"}
        if wants(rule, "full_gradient"):
            shared["gradient"] = self._gradient(start)
        rule.begin(start, shared, self._kept)
        y = start.copy()
        for _ in range(self.steps):
            noise = np.float32(self.noise) * rng.standard_normal(y.size, np.float32)
            y = y - np.float32(self.lr) * rule.direction(self._gradient(y) + noise, y)
        extra, self._kept = rule.finish(start, y, self.steps, self.lr)
        own = np.float32(0.25 * (1 + self.number))
        delta = np.concatenate([y - start, (own - x[spec.buffers]) / np.float32(2)])
        return Update(self.name, task.round, {"delta": delta, **extra}, self.weight, {"images": self.weight})

    def evaluate(self, task: Task) -> Evaluation:
        """The loss, and a "map50" that falls as it grows."""
        x = task.vectors["model"][: self.initial()[0].boundary].astype(np.float64)
        a, b = self._loss(x.size)
        loss = float(0.5 * np.sum(a * (x - b) ** 2))
        return Evaluation(self.name, task.round, {"loss": loss, "map50": 1 / (1 + loss)}, self.weight)

    def state(self) -> bytes:
        """What the strategy's client half keeps."""
        return pack_state(self._kept)

    def restore(self, state: bytes) -> None:
        """The inverse of `state`."""
        self._kept = unpack_state(state)

    def _loss(self, size: int) -> tuple[Vector, Vector]:
        rng = np.random.default_rng(self.number)
        return rng.uniform(0.5, 2, size).astype(np.float32), rng.normal(size=size).astype(np.float32)

    def _gradient(self, x: Vector) -> Vector:
        a, b = self._loss(x.size)
        return a * (x - b)


def sample_sites(count: int = 6) -> list[Client]:
    """Sites named site-00, site-01, ..., all different."""
    return [SampleClient(f"site-{i:02d}", i) for i in range(count)]
