"""DetectorClient: a site that trains a YOLO polyp detector on the images it detects badly.

A round at a site: score every training image with the received model, let the selector choose, train on what was
kept, send the difference. What travels is the live float32 state, parameters and BatchNorm statistics; never a moving
average, never a file of the detector's own trainer, which are in half precision.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from polypfed.clients.flat import FlatModel
from polypfed.clients.frames import Augment, Batches, Cache, Frames
from polypfed.clients.isolation import isolated
from polypfed.clients.training import LocalTraining, check_linear
from polypfed.core.errors import ConfigError, DataError
from polypfed.core.messages import Evaluation, Task, Update
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.pack import pack_state, unpack_state
from polypfed.core.seeds import generator
from polypfed.detect import yolo
from polypfed.detect.detections import Detections
from polypfed.detect.metrics import DetectionMetrics, detection_metrics, mistakes
from polypfed.detect.warm import warm_start
from polypfed.detect.widths import before_head, parts
from polypfed.select import Below, Score, Selector, decisions, write_decisions
from polypfed.strategies.base import Strategy

Optimizer = Literal["SGD", "Adam", "AdamW"]
_LEAST = 0.001  # confidence from which detections count for average precision
_COUNT = (1, (int,), "a whole number of at least 1")
_NONE = (0, (int,), "a whole number of at least 0")
_RATE = (1e-12, (int, float), "a number above 0")
_SIZE = (0, (int, float), "a number of at least 0")
_LIMITS = {"batch": _COUNT, "epochs": _COUNT, "threads": _COUNT, "freeze": _NONE, "patience": _NONE, "lr": _RATE}
_LIMITS |= {"lr_decay": _RATE, "momentum": _SIZE, "weight_decay": _SIZE, "clip": _SIZE}
_AS_IT_IS = Augment(mosaic=0.0, affine=False, hsv=False, flip=False, flip_vertical=False)
_CHOICES = {"optimizer": ("SGD", "Adam", "AdamW"), "cache": ("ram", "none")}


@dataclass
class DetectorClient:
    """One hospital.

    Args:
        name: the site.
        train: YOLO folder to train on, or several.
        val: YOLO folder to evaluate on; None gives evaluations of weight 0.
        arch: "yolov5n", "yolov5s", "yolov5m", "yolov5l" or "yolov5x", or a narrower one: "yolov5n-0.75"; "yolov8n" to
            "yolov8x" and "yolo11n" to "yolo11x" train the same way, but boards take YOLOv5 only.
        imgsz: side of the square the detector sees, a multiple of 32.
        batch: images per step. epochs: passes over the kept images in a round.
        optimizer: "SGD" (Nesterov), "Adam" or "AdamW"; a new one each round.
        lr: of the optimiser. The loss is, as in ultralytics, summed over the batch.
        momentum: of the optimiser; Adam's beta1.
        weight_decay: of the optimiser; only weights of convolutions decay.
        lr_decay: the rate of round r is lr * lr_decay ** (r - 1).
        clip: largest norm of a step's gradient; 0 for none.
        freeze: the first layers that stay as received, their BatchNorm statistics too.
        augment: what is done to training images.
        patience: stop the fit after so many epochs without a better mAP50 on `val`; 0 never.
        selector: which images to train on.
        threads: of torch, while this site works; another number gives other bits.
        warm_start: `.npz` of weights to start from; all sites of a federation must name the same.
        warm_share: least share of the model's values it must hold.
        cache: "ram" keeps the shrunk images (a 192-px image is 0.1 MB), "none" decodes at each use.
        directory: the site's folder in the run, for selection/round-NNNN.csv; None writes nothing.
        init_seed: of the random weights that `initial` proposes.

    Raises:
        ConfigError: a setting is out of range.
    """

    name: str
    train: str | Path | Sequence[str | Path]
    val: str | Path | None = None
    arch: str = "yolov5n"
    imgsz: int = 192
    batch: int = 16
    epochs: int = 1
    optimizer: Optimizer = "AdamW"
    lr: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 5e-4
    lr_decay: float = 1.0
    clip: float = 10.0
    freeze: int = 0
    augment: Augment = field(default_factory=Augment)
    patience: int = 0
    selector: Selector = field(default_factory=Below)
    threads: int = 1
    warm_start: str | Path | None = None
    warm_share: float = 0.3
    cache: Cache = "ram"
    directory: str | Path | None = None
    init_seed: int = 0
    _kept: dict[str, Vector] = field(default_factory=dict, repr=False)
    _frames: dict[str, Frames] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for setting, (least, kinds, wanted) in _LIMITS.items():
            value = getattr(self, setting)
            if type(value) not in kinds or not least <= value < float("inf"):
                raise self._wrong(setting, wanted)
        if not self.momentum < 1:
            raise self._wrong("momentum", "below 1")
        for setting, known in _CHOICES.items():
            if getattr(self, setting) not in known:
                raise self._wrong(setting, f"one of {', '.join(known)}")
        if self.patience and self.val is None:
            raise ConfigError("patience needs a validation set", where=f"{self.name}: patience")
        try:
            parts(self.arch)
        except ConfigError as error:
            raise ConfigError(error.problem, where=f"{self.name}: arch", remedy=error.remedy) from None
        if self.freeze > before_head(self.arch):
            raise self._wrong("freeze", f"at most {before_head(self.arch)}, for the rest is the detection head")
        yolo.check_size(self.imgsz)

    def initial(self) -> tuple[ModelSpec, Vector]:
        """The layout and the model to start from, random or warm; equal settings give equal bits.

        Raises:
            DataError: `warm_start` cannot be used.
        """
        return _initial(self.arch, self.init_seed, self.warm_start, self.warm_share)

    def fit(self, task: Task) -> Update:
        """Score, select, train; weight = images kept.

        Metrics: `images` seen by the selector, `kept`, `loss` (mean per image; only if something was kept), seconds
        `select_s` and `train_s`, and `cpu_s` of the whole call.

        Raises:
            DataError: an image or label cannot be used. TrainingError: the loss is not finite.
        """
        cpu = time.process_time()
        flat, frames = _resident(self.arch), self._open("train")
        with isolated(task.seed, self.threads):
            began = time.perf_counter()
            flat.load(task.vectors["model"])
            kept = self._select(task, flat.module, frames)
            chosen = time.perf_counter()
            work = LocalTraining(flat, task, self._kept, self.clip, lambda: self._whole(flat.module, frames, kept))
            loss = self._train(work, task, Batches(frames, kept, self.augment)) if len(kept) else None
            vectors, self._kept = work.finish()
            done = time.perf_counter()
        metrics: dict[str, float] = {"images": len(frames), "kept": len(kept)}
        metrics |= {} if loss is None else {"loss": loss}
        metrics |= {"select_s": chosen - began, "train_s": done - chosen, "cpu_s": time.process_time() - cpu}
        return Update(self.name, task.round, vectors, len(kept), metrics)

    def evaluate(self, task: Task) -> Evaluation:
        """map50, map50_95, precision, recall, f1 on `val`; weight = its images."""
        if self.val is None:
            return Evaluation(self.name, task.round, {}, 0)
        with isolated(task.seed, self.threads):
            flat = _resident(self.arch)
            flat.load(task.vectors["model"])
            metrics = self._score(flat.module)
        return Evaluation(self.name, task.round, metrics.as_dict(), len(self._open("val")))

    def detect(self, model: Vector, images: int | None = None, conf: float = 0.25) -> list["Example"]:
        """`images` validation images, spread evenly over the set, with true boxes and what `model` finds in them."""
        frames = self._open("val")
        count = len(frames) if images is None else min(images, len(frames))
        which = [i * len(frames) // count for i in range(count)]
        some = [frames[i] for i in which]
        with isolated(0, self.threads):
            flat = _resident(self.arch)
            flat.load(model)
            found = yolo.predict(flat.module, some, self.imgsz, conf, batch=self.batch)
        rows = zip(which, some, found, strict=True)
        return [Example(self.name, frames.samples[i].id, image, frames.boxes(i), f) for i, image, f in rows]

    def state(self) -> bytes:
        """What the strategy's client half keeps, as safetensors."""
        return pack_state(self._kept)

    def restore(self, state: bytes) -> None:
        """The inverse of `state`."""
        self._kept = unpack_state(state)

    def _select(self, task: Task, model: Any, frames: Frames) -> NDArray[np.intp]:
        scores = self._judge(model, frames)
        mask = self.selector.choose(scores, generator(task.seed, "select"))
        if self.directory is not None:
            write_decisions(decisions(self.name, task.round, scores, mask), self.directory)
        return np.flatnonzero(mask)

    def _judge(self, model: Any, frames: Frames) -> list[Score]:
        names, judge = [sample.id for sample in frames.samples], self.selector.judge
        if self.selector.blind:
            return [Score(name, float("nan")) for name in names]
        if judge is None:
            best = yolo.best_confidence(model, frames, self.imgsz, self.batch)
            return [Score(name, float(c)) for name, c in zip(names, best, strict=True)]
        found = yolo.predict(model, frames, self.imgsz, min(_LEAST, judge.confidence), batch=self.batch)
        wrong = [mistakes(f.above(judge.confidence), frames.boxes(i), judge.iou) for i, f in enumerate(found)]
        return [Score(name, f.best, *w) for name, f, w in zip(names, found, wrong, strict=True)]

    def _train(self, work: LocalTraining, task: Task, batches: Batches) -> float:
        model: Any = work.flat.module
        with _frozen(work.flat, self.freeze):
            work.use(self._optimizer(work.flat.learning(), self.lr * self.lr_decay ** (task.round - 1)))
            rng, best, stale, total, seen = generator(task.seed, "order"), -1.0, 0, 0.0, 0
            for epoch in range(self.epochs):
                model.train()
                model.model[: self.freeze].eval()
                for batch in batches.epoch(self.batch, rng):
                    loss = model.loss(batch)[0].sum()
                    work.step(loss)
                    total, seen = total + float(loss.detach()), seen + len(batch["img"])
                if self.patience and epoch + 1 < self.epochs:
                    score = self._score(model).map50
                    best, stale = (score, 0) if score > best else (best, stale + 1)
                    if stale >= self.patience:
                        break
        return total / seen

    def check(self, strategy: Strategy) -> None:
        """Raise a ConfigError if this site cannot train under `strategy`."""
        learning = [torch.nn.Parameter(torch.zeros(1, 1))]
        check_linear(strategy.local_rule(), self._optimizer(learning, self.lr), self.clip)

    def _whole(self, model: Any, frames: Frames, kept: NDArray[np.intp]) -> Iterator[tuple[torch.Tensor, float]]:
        """The loss of every kept frame as it is, in batches; their gradients are averaged as those of steps are."""
        model.train()
        model.model[: self.freeze].eval()
        if len(kept):
            for batch in Batches(frames, kept, _AS_IT_IS).epoch(self.batch, np.random.default_rng(0)):
                yield model.loss(batch)[0].sum(), 1.0

    def _optimizer(self, learning: list[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for p in learning if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if self.optimizer == "SGD":
            return torch.optim.SGD(groups, lr=lr, momentum=self.momentum, nesterov=self.momentum > 0)
        kind = torch.optim.Adam if self.optimizer == "Adam" else torch.optim.AdamW
        return kind(groups, lr=lr, betas=(self.momentum, 0.999))

    def _score(self, model: Any) -> DetectionMetrics:
        frames = self._open("val")
        found = yolo.predict(model, frames, self.imgsz, _LEAST, batch=self.batch)
        return detection_metrics(found, [frames.boxes(i) for i in range(len(frames))])

    def _open(self, part: Literal["train", "val"]) -> Frames:
        if part not in self._frames:
            folder = self.train if part == "train" else self.val
            if folder is None:
                raise DataError("has no validation set", where=self.name)
            self._frames[part] = Frames(folder, self.imgsz, self.cache)
        return self._frames[part]

    def _wrong(self, setting: str, wanted: str) -> ConfigError:
        return ConfigError(f"must be {wanted}, got {getattr(self, setting)!r}", where=f"{self.name}: {setting}")

    def __getstate__(self) -> dict[str, Any]:
        """Without the images: a worker process reads its own."""
        return self.__dict__ | {"_frames": {}}


@dataclass(frozen=True, eq=False)
class Example:
    """One validation image with what is there and what was found; boxes in pixels of `pixels`, (h, w, 3) RGB."""

    site: str
    image: str
    pixels: NDArray[np.uint8] = field(repr=False)
    true: NDArray[np.float32]
    found: Detections


_RESIDENT: dict[str, FlatModel] = {}


def _resident(arch: str) -> FlatModel:
    """The one model of this architecture in this process; every site of the process takes its turn on it."""
    if arch not in _RESIDENT:
        _RESIDENT[arch] = FlatModel.of(yolo.build(arch), yolo.group)
    return _RESIDENT[arch]


@lru_cache(maxsize=4)
def _initial(arch: str, seed: int, warm: str | Path | None, share: float) -> tuple[ModelSpec, Vector]:
    flat = FlatModel(yolo.build(arch, seed), yolo.group)
    x = flat.values.copy()
    if warm is not None:
        warm_start(flat.spec.views(x), warm, share)
    x.setflags(write=False)
    return flat.spec, x


@contextmanager
def _frozen(flat: FlatModel, first: int) -> Iterator[None]:
    """The first layers ask for no gradient; afterwards all do again, for the next site may freeze none."""
    model: Any = flat.module
    held = [p for p in model.model[:first].parameters() if p.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
