"""Boards small enough for a test: the small template, models that are sure or not, a client of such models."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from polypfed import Evaluation, Federation, Task, Update
from polypfed.core.model import ModelSpec, Vector
from polypfed.detect.template import Template

TEMPLATE = Path(__file__).parent / "detect" / "mini-64.zip"


def arrays(template: Template, score: float) -> dict[str, np.ndarray]:
    """A model that gives every cell the confidence sigmoid(score)."""
    rng, made = np.random.default_rng(3), {}
    for slot in template.blank("fp32").slots:
        out, height, width, deep = slot.shape
        small = 0.0 if slot.layer.name.startswith("scores") else 0.3
        made[slot.layer.weight] = rng.normal(0, small, (out, deep, height, width)).astype(np.float32)
        if slot.layer.norm:
            values = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
            made |= {f"{slot.layer.norm}.{n}": np.full(out, v, np.float32) for n, v in values.items()}
        else:
            bias = score if slot.layer.name.startswith("scores") else 0.0
            made[f"{slot.layer.name}.bias"] = np.full(out, bias, np.float32)
    return made


class Surer:
    """Each fit makes all cells surer by 1 (logit); in round `dies` its process ends instead, once."""

    def __init__(self, name: str, base: Path, dies: int = 0) -> None:
        self.name, self.base, self.dies = name, base, dies

    def initial(self) -> tuple[ModelSpec, Vector]:
        values = arrays(Template.open(TEMPLATE), -2.0)
        spec = ModelSpec.of(values)
        return spec, spec.pack(values)

    def fit(self, task: Task) -> Update:
        if task.round == self.dies and not (self.base / "died").exists():
            (self.base / "died").touch()
            os._exit(9)
        spec = self.initial()[0]
        delta = np.zeros(spec.size, np.float32)
        for name, view in spec.views(delta).items():
            if name.startswith("scores") and name.endswith("bias"):
                view[...] = 1.0
        return Update(self.name, task.round, {"delta": delta}, 1)

    def evaluate(self, task: Task) -> Evaluation:
        return Evaluation(self.name, task.round, {"size": float(len(task.vectors["model"]))}, 1)

    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        pass


def federation(names: list[str], base: Path, rounds: int = 2, **more: Any) -> Any:
    return Federation(initial=Surer("a", base).initial(), quorum=len(names), deadline=60.0), rounds


def client(name: str, base: Path, names: list[str] | None = None, dies: int = 0) -> Surer:
    return Surer(name, base, dies)


def table(folder: Path, frames: int = 12, **more: Any) -> str:
    """The [device] of a site.toml, and noise for it to look at."""
    import json

    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    for number in range(frames):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / "frames" / f"{number}.png")
    given = {"frames": "frames", "template": str(TEMPLATE), "store": "samples", "key": "samples.key", "repeat": True}
    given |= {"threads": 1, "every": 50} | more
    return "\n[device]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in given.items())
