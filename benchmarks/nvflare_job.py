"""The peer of benchmarks/on_nvflare.py: FedAvg as an NVFlare user writes it by hand; and the training on both sides."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.app_common.workflows.base_fedavg import BaseFedAvg

from polypfed import Evaluation, ModelSpec, Task, Update

LAYERS, SIZE = 197, 2_509_000  # as a YOLOv5n has them, in values


def model() -> dict[str, np.ndarray]:
    """Layers of uneven sizes."""
    sizes = np.random.default_rng(0).integers(1, 100, LAYERS) ** 2
    sizes = np.maximum(1, sizes * SIZE // sizes.sum())
    return {f"layer.{i}": np.linspace(-1, 1, int(n), dtype=np.float32) for i, n in enumerate(sizes)}


def train(arrays: dict[str, np.ndarray], target: float, seconds: float) -> dict[str, np.ndarray]:
    """Gradient steps toward `target` for so many seconds of CPU, at least one; the differences."""
    before, now = time.thread_time(), {k: v.copy() for k, v in arrays.items()}
    while True:
        for value in now.values():
            value -= np.float32(0.01) * (value - np.float32(target))
        if time.thread_time() - before > seconds:
            return {k: now[k] - arrays[k] for k in arrays}


class ByHand(BaseFedAvg):
    """All sites, every round, weighted means."""

    def __init__(self, rounds: int, log: str) -> None:
        super().__init__(num_clients=2, num_rounds=rounds, persistor_id="")
        self.rounds, self.log = rounds, log

    def run(self) -> None:
        current = FLModel(params=model(), params_type=ParamsType.FULL)
        mark(self.log)
        for number in range(self.rounds):
            current.current_round = number
            results = self.send_model_and_wait(targets=self.sample_clients(2), data=current)
            current = FLModelUtils.update_model(current, self.aggregate(results))
            mark(self.log)
        mark(self.log)


class Trainer(Executor):
    """One site."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        received = FLModelUtils.from_shareable(shareable)
        target = float(int(fl_ctx.get_identity_name()[-1]))
        differences = train(received.params, target, self.seconds)
        meta = {"NUM_STEPS_CURRENT_ROUND": 1}
        return FLModelUtils.to_shareable(FLModel(params=differences, params_type=ParamsType.DIFF, meta=meta))


class Site:
    """The same site as a polypfed client."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self.spec = ModelSpec.of(model())

    def initial(self) -> tuple[ModelSpec, np.ndarray]:
        return self.spec, self.spec.pack(model())

    def fit(self, task: Task) -> Update:
        differences = train(self.spec.views(task.vectors["model"]), float(int(self.name[-1])), self.seconds)
        return Update(self.name, task.round, {"delta": self.spec.pack(differences)}, 1)

    def evaluate(self, task: Task) -> Evaluation:
        return Evaluation(self.name, task.round, {}, 0)

    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        """Nothing is kept."""


def mark(log: str) -> None:
    """Note the time: the first mark is the start of round 1, then one after each round."""
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(f"{time.monotonic()}\n")


def by_hand(rounds: int, seconds: float, folder: str) -> Any:
    """The job, run in NVFlare's simulator."""
    from nvflare.job_config.api import FedJob

    job = FedJob(name="by_hand")
    job.to_server(ByHand(rounds, f"{folder}/marks"))
    job.to_server({"server": {"task_request_interval": 0.05}})
    job.to_clients(Trainer(seconds))
    job.simulator_run(f"{folder}/workspace", n_clients=2, threads=2, log_config="concise")
