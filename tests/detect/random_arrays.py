"""Weights for a template without torch."""

import numpy as np

from polypfed.detect.template import Template


def random_arrays(template: Template, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {}
    for slot in template.blank("fp32").slots:
        out, height, width, deep = slot.shape
        arrays[slot.layer.weight] = rng.normal(0, 0.3, (out, deep, height, width)).astype(np.float32)
        if slot.layer.norm:
            for name in ("weight", "bias", "running_mean"):
                arrays[f"{slot.layer.norm}.{name}"] = rng.normal(0, 0.5, out).astype(np.float32)
            arrays[f"{slot.layer.norm}.running_var"] = rng.uniform(0.2, 2, out).astype(np.float32)
        else:
            arrays[f"{slot.layer.name}.bias"] = rng.normal(0, 0.3, out).astype(np.float32)
    return arrays
