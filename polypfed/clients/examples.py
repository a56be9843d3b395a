"""Sample images for a report: what is there, and what a model sees."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from polypfed.clients.detector_client import DetectorClient
from polypfed.core.files import write_atomic
from polypfed.core.model import Vector
from polypfed.data.images import encode


def write_samples(
    clients: Sequence[DetectorClient],
    model: Vector | Mapping[str, Vector],
    directory: str | Path,
    per_site: int = 4,
    conf: float = 0.25,
) -> Path:
    """Write `directory`/samples/*.jpg and samples.json: the first validation images of each site.

    Args:
        clients: sites whose images may be shown; this writes images, so it is for the machine that holds them.
        model: (P,) float32, or one for each site by name; a site without one is left out.
        directory: of the run.
        per_site: images of each site, spread evenly over its validation set.
        conf: least confidence of a detection that is shown.

    Returns:
        The path of samples.json, a list of {"site", "image", "true": [[x1, y1, x2, y2]], "pred": [[x1, y1, x2, y2,
        confidence]]}; `image` is a file beside it and boxes are pixels of that file.
    """
    folder, rows = Path(directory) / "samples", []
    models = model if isinstance(model, Mapping) else {client.name: model for client in clients}
    for client in (c for c in clients if c.name in models):
        for example in client.detect(models[client.name], per_site, conf):
            name = f"{example.site}-{example.image}.jpg"
            write_atomic(folder / name, encode(example.pixels, "JPEG"))
            found = [
                [*map(float, box), float(c)]
                for box, c in zip(example.found.xyxy.round(1), example.found.confidence.round(4), strict=True)
            ]
            true = example.true.round(1).tolist()
            rows.append({"site": example.site, "image": name, "true": true, "pred": found})
    path = folder / "samples.json"
    write_atomic(path, json.dumps(rows, indent=1).encode())
    return path
