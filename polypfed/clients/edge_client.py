"""EdgeClient: a DetectorClient whose frames are chosen by the detector that serves on the device.

The received model is filled into a template, quantised and compared with fp32 on the site's own frames; what passes
scores the frames. So a site trains on what its device, and not a float model in a data centre, sees badly.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polypfed.clients.detector_client import DetectorClient
from polypfed.clients.frames import Frames
from polypfed.core.errors import ConfigError
from polypfed.core.messages import Task, Update
from polypfed.detect.adapt import ORDER, Adapted, adapt
from polypfed.detect.agreement import Limits
from polypfed.detect.litert import LiteRTDetector
from polypfed.detect.patch import patch
from polypfed.detect.scoring import best_confidence
from polypfed.detect.template import PRECISIONS, Precision, Template
from polypfed.select import Below, Score

_GATE = 120  # frames a round's model is compared on; all are scored


@dataclass
class EdgeClient(DetectorClient):
    """One endoscope.

    Args:
        template: file of the template for `arch` at `imgsz`.
        precisions: tried in this order; the first that decides like fp32 serves.
        second_look: ask fp32 again within `limits.difference` of the selector's threshold.
        limits: what the gate wants.

    Raises:
        ConfigError: no template, one of another architecture, or a selector that looks at more than confidences.
    """

    template: str | Path | None = None
    precisions: tuple[Precision, ...] = ORDER
    second_look: bool = True
    limits: Limits = field(default_factory=Limits)
    _template: Template | None = field(default=None, repr=False)
    _served: Adapted | None = field(default=None, repr=False)
    _twice: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template is None:
            raise ConfigError("needs a template", where=f"{self.name}: template", remedy="polypfed export yolov5n")
        if unknown := set(self.precisions) - set(PRECISIONS):
            raise self._wrong("precisions", f"some of {', '.join(PRECISIONS)}, not {unknown}")
        if self.selector.judge is not None:
            raise ConfigError("the device's detector gives confidences alone", where=f"{self.name}: selector")

    def fit(self, task: Task) -> Update:
        """As `DetectorClient.fit`, with the metrics `edge_bits` (of the serving model's weights: 32, 16 or 8),
        `edge_static` (1 if its activations are integers too), `edge_agreement` and `edge_twice` (frames that fp32 was
        asked about again).
        """
        self._served, self._twice = None, 0
        update = super().fit(task)
        served: Any = self._served
        if served is not None:
            bits = {"fp32": 32, "fp16": 16}.get(served.precision, 8)
            metrics: dict[str, float] = {
                "edge_bits": bits,
                "edge_static": int(served.precision == "int8"),
                "edge_twice": self._twice,
            }
            metrics["edge_agreement"] = served.agreement.agreement if served.agreement else 1.0
            update = Update(update.client, update.round, update.vectors, update.weight, {**update.metrics, **metrics})
        return update

    def _judge(self, model: Any, frames: Frames) -> list[Score]:
        names = [sample.id for sample in frames.samples]
        if self.selector.blind:
            return [Score(name, float("nan")) for name in names]
        arrays = {n: t.detach().numpy() for n, t in model.state_dict().items() if t.dtype == torch.float32}
        arrays = {n: a for n, a in arrays.items() if not n.endswith("dfl.conv.weight")}
        threshold = self.selector.threshold if isinstance(self.selector, Below) else Below().threshold
        template = self._opened()
        some = range(0, len(frames), max(1, len(frames) // _GATE))
        served = adapt(
            template,
            arrays,
            [frames[i] for i in some],
            threshold=threshold,
            order=self.precisions,
            limits=self.limits,
            threads=self.threads,
        )
        self._served = served
        detector = LiteRTDetector(served.model, self.threads, conf=0.001)
        exact = None
        if self.second_look and served.precision != "fp32":
            exact = LiteRTDetector(patch(template, arrays), self.threads, conf=0.001)
        best, self._twice = best_confidence(detector, frames, exact, threshold, self.limits.difference)
        return [Score(name, float(c)) for name, c in zip(names, np.asarray(best), strict=True)]

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
        return super().__getstate__() | {"_template": None, "_served": None}
