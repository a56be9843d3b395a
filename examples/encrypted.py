"""An encrypted federation: the server adds ciphertexts, sees no update, no sum and no model. Needs the extra `he`."""

import tempfile
from pathlib import Path

import numpy as np

import polypfed as pf
from polypfed.core.rundir import load_model

clients = [
    pf.NumpyClient(name, lambda x, at=at: x - np.array(at), [0.0, 0.0], lr=0.2, steps=5)
    for name, at in (("north", [1.0, 0.0]), ("south", [0.0, 1.0]), ("west", [0.5, 0.5]))
]
folder = Path(tempfile.mkdtemp()) / "run"
fed = pf.Federation(clients=clients, stages=pf.privacy.stages("he", cap=64), quorum=3)
history = fed.run(rounds=8, backend=pf.backends.Local(), directory=folder)
_, model = load_model(folder / "sites" / "north" / "model.safetensors")
print(f"the server holds a model: {history.model is not None}; north holds {model.round(2)}, the mean is [0.5 0.5]")
