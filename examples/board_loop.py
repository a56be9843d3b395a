"""The loop of a board, on a laptop: a model arrives, the device takes it over, hard frames go into an encrypted store.

    polypfed export yolov5n --image-size 320 --install-converter    # makes a template
    python examples/board_loop.py TEMPLATE.zip

Here the arriving model has random weights, so every frame is hard. Needs the extra `edge`.
"""

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from polypfed.clients.device import Device, Inbox, serve
from polypfed.core.model import ModelSpec
from polypfed.core.rundir import save_model
from polypfed.data.store import SampleStore, Vault
from polypfed.detect.template import Template

rng = np.random.default_rng(0)
template = Template.open(Path(sys.argv[1]))
folder = Path(tempfile.mkdtemp())


def weights(scale: float = 0.1) -> dict[str, np.ndarray]:
    """Arrays that fit the template, as a round of a federation would bring them."""
    made = {}
    for slot in template.blank("fp32").slots:
        out, height, width, deep = slot.shape
        made[slot.layer.weight] = rng.normal(0, scale, (out, deep, height, width)).astype(np.float32)
        start = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1} if slot.layer.norm else {"bias": 0}
        made |= {f"{slot.layer.norm or slot.layer.name}.{n}": np.full(out, v, np.float32) for n, v in start.items()}
    return made


def frames() -> list[SimpleNamespace]:
    """A camera: ten noisy pictures, (96, 128, 3) uint8."""
    return [SimpleNamespace(pixels=rng.integers(0, 256, (96, 128, 3), dtype=np.uint8), name=f"{n}") for n in range(10)]


arrays = weights()
spec = ModelSpec.of(arrays)
(folder / "models").mkdir()
save_model(folder / "models" / "round-1.safetensors", spec, spec.pack(arrays))
with SampleStore(folder / "samples", Vault(folder / "samples.key"), most_bytes=10_000_000) as store:
    device = Device(template, store, threshold=0.9, every=2)
    serve(device, frames, Inbox(folder / "models"), look=0.1)
print(f"serves {device.version}: {device.counts}")
