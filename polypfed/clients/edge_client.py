"""EdgeClient: a DetectorClient whose frames are chosen by the detector that serves on the device.

The received model is filled into a template, quantised and compared with fp32 on the site's own frames; what passes
scores the frames. So a site trains on what its device, and not a float model in a data centre, sees badly.

With a sample store the frames are those that the device kept and a person has labelled since.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polypfed.clients.detector_client import DetectorClient
from polypfed.clients.frames import Frames
from polypfed.clients.on_device import digest_of, version
from polypfed.clients.stored_frames import StoredFrames
from polypfed.core.errors import ConfigError
from polypfed.core.messages import Task, Update
from polypfed.data.store import SampleStore, Vault
from polypfed.detect.adapt import ORDER, Adapted, adapt
from polypfed.detect.agreement import Limits
from polypfed.detect.litert import LiteRTDetector
from polypfed.detect.patch import patch
from polypfed.detect.scoring import best_confidence
from polypfed.detect.template import PRECISIONS, Precision, Template
from polypfed.select import Below, Score

_GATE = 120  # frames a round's model is compared on; all are scored
_ENOUGH = 24  # with fewer there is nothing to compare on, and fp32 serves


@dataclass
class EdgeClient(DetectorClient):
    """One endoscope.

    Args:
        template: file of the template for `arch` at `imgsz`.
        precisions: tried in this order; the first that decides like fp32 serves.
        second_look: ask fp32 again within `limits.difference` of the selector's threshold.
        limits: what the gate wants.
        store: folder of the device's sample store; its labelled frames are trained on, with those of `train` if that
            folder exists. key: its key file.
        pseudo: take the serving model's boxes of at least this confidence as labels of frames that nobody has labelled;
            0 never does. Such frames are counted in the metric `pseudo`.

    Raises:
        ConfigError: no template, one of another architecture, a selector that looks at more than confidences, or a
            store without a key.
    """

    template: str | Path | None = None
    precisions: tuple[Precision, ...] = ORDER
    second_look: bool = True
    limits: Limits = field(default_factory=Limits)
    store: str | Path | None = None
    key: str | Path | None = None
    pseudo: float = 0.0
    _template: Template | None = field(default=None, repr=False)
    _served: Adapted | None = field(default=None, repr=False)
    _twice: int = field(default=0, repr=False)
    _stored: StoredFrames | None = field(default=None, repr=False)
    _opened_store: SampleStore | None = field(default=None, repr=False)
    _version: str = field(default="", repr=False)
    _confidences: Sequence[Score] = field(default=(), repr=False)
    _pseudo_kept: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template is None:
            raise ConfigError("needs a template", where=f"{self.name}: template", remedy="polypfed export yolov5n")
        if unknown := set(self.precisions) - set(PRECISIONS):
            raise self._wrong("precisions", f"some of {', '.join(PRECISIONS)}, not {unknown}")
        if self.selector.judge is not None:
            raise ConfigError("the device's detector gives confidences alone", where=f"{self.name}: selector")
        if self.store is not None and self.key is None:
            raise ConfigError("a store needs a key", where=f"{self.name}: key")
        if not 0 <= self.pseudo <= 1 or (self.pseudo and self.store is None):
            raise self._wrong("pseudo", "from 0 to 1, and needs a store")

    def fit(self, task: Task) -> Update:
        """As `DetectorClient.fit`, with the metrics `edge_bits` (of the serving model's weights: 32, 16 or 8),
        `edge_static` (1 if its activations are integers too), `edge_agreement` and `edge_twice` (frames that fp32 was
        asked about again); with the policy on pseudo labels `pseudo`, the frames trained on that only a model labelled.

        Raises:
            DataError: the store or a frame in it cannot be used. Others as `DetectorClient.fit`.
        """
        self._served, self._twice, self._pseudo_kept = None, 0, 0
        if self.store is None:
            return self._marked(super().fit(task))
        with SampleStore(Path(self.store), Vault(Path(str(self.key)), create=False)) as store:
            self._opened_store, self._version = store, version(task.round - 1, digest_of(task.vectors["model"]))
            try:
                if self.pseudo:
                    self._guess(store, task)
                self._take(store)
                return self._marked(super().fit(task))
            finally:
                self._opened_store = None

    def _marked(self, update: Update) -> Update:
        metrics: dict[str, float] = {"pseudo": self._pseudo_kept} if self.pseudo else {}
        if (served := self._served) is not None:
            metrics["edge_bits"] = {"fp32": 32, "fp16": 16}.get(served.precision, 8)
            metrics |= {"edge_static": int(served.precision == "int8"), "edge_twice": self._twice}
            metrics["edge_agreement"] = served.agreement.agreement if served.agreement else 1.0
        return Update(update.client, update.round, update.vectors, update.weight, {**update.metrics, **metrics})

    def _take(self, store: SampleStore) -> None:
        """The store's labelled frames, as they are now."""
        if self._stored is None:
            given = [self.train] if isinstance(self.train, str | Path) else self.train
            self._stored = StoredFrames([f for f in given if Path(f).is_dir()], self.imgsz, self.cache)
        self._stored.refresh(store, self.pseudo > 0)
        self._frames["train"] = self._stored

    def _guess(self, store: SampleStore, task: Task) -> None:
        """Label frames that no person has labelled with what the serving model is sure of."""
        records = store.records("none", "exported", "pseudo")
        if not records:
            return
        some = [store.image(r.id) for r in records[:: max(1, len(records) // _GATE)]]
        served = self._serve(self.initial()[0].views(task.vectors["model"]), some)
        detector = LiteRTDetector(served.model, self.threads, conf=self.pseudo)
        for record in records:
            boxes = detector(store.image(record.id)).xyxy
            if len(boxes := boxes[(boxes[:, 2:] - boxes[:, :2] > 1).all(axis=1)]):
                store.label(record.id, boxes, self._version, pseudo=True)

    def _select(self, task: Task, model: Any, frames: Frames) -> NDArray[np.intp]:
        kept = super()._select(task, model, frames)
        if isinstance(frames, StoredFrames) and (store := self._opened_store) is not None:
            chosen, own = {frames.samples[i].id for i in kept}, frames.stored()
            self._pseudo_kept = len(chosen & frames.pseudo)
            for score in (s for s in self._confidences if s.image in own):
                store.score(score.image, score.confidence, self._version, score.image in chosen)
        return kept

    def _judge(self, model: Any, frames: Frames) -> list[Score]:
        names, self._confidences = [sample.id for sample in frames.samples], ()
        if self.selector.blind or not names:
            return [Score(name, float("nan")) for name in names]
        arrays = {n: t.detach().numpy() for n, t in model.state_dict().items() if t.dtype == torch.float32}
        arrays = {n: a for n, a in arrays.items() if not n.endswith("dfl.conv.weight")}
        served = self._serve(arrays, [frames[i] for i in range(0, len(frames), max(1, len(frames) // _GATE))])
        detector = LiteRTDetector(served.model, self.threads, conf=0.001)
        exact = None
        if self.second_look and served.precision != "fp32":
            exact = LiteRTDetector(patch(self._opened(), arrays), self.threads, conf=0.001)
        best, self._twice = best_confidence(detector, frames, exact, self._threshold, self.limits.difference)
        self._confidences = [Score(name, float(c)) for name, c in zip(names, np.asarray(best), strict=True)]
        return list(self._confidences)

    @property
    def _threshold(self) -> float:
        return self.selector.threshold if isinstance(self.selector, Below) else Below().threshold

    def _serve(self, arrays: Mapping[str, Any], frames: Sequence[Any]) -> Adapted:
        """The model that serves this round; chosen once, on the first frames given."""
        if self._served is None:
            enough = len(frames) >= _ENOUGH
            self._served = adapt(
                self._opened(), arrays, frames, threshold=self._threshold, limits=self.limits, threads=self.threads,
                order=self.precisions if enough else ("fp32",), calibration=None if enough else frames,
            )  # fmt: skip
        return self._served

    def _opened(self) -> Template:
        if self._template is None:
            found = Template.open(Path(str(self.template)))
            about = found.manifest
            if (about.arch, about.imgsz) != (self.arch, self.imgsz):
                raise ConfigError(
                    f"is of {about.arch} at {about.imgsz}, the site trains {self.arch} at {self.imgsz}",
                    where=self.template,
                )
            self._template = found
        return self._template

    def __getstate__(self) -> dict[str, Any]:
        """Without images and template: a worker process opens its own."""
        return super().__getstate__() | {"_template": None, "_served": None, "_stored": None, "_opened_store": None}
