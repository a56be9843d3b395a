"""No pickle at run time: a federation of detectors under the interpreter's own audit hook, and files that would act."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed.core.audit import verify
from polypfed.core.checkpoint import _read
from polypfed.core.errors import PolypfedError
from polypfed.core.files import read_framed
from polypfed.core.messages import decode
from polypfed.core.rundir import load_model
from polypfed.data.images import open_image
from polypfed.data.labels import read_labels
from polypfed.detect.template import Template
from polypfed.detect.tflite import TFLite
from tests.problems import ROOT

WATCHED = """
import json, sys, traceback
from pathlib import Path

seen = []

def hook(event, arguments):
    if event in ("pickle.find_class", "marshal.loads") and watching:
        seen.append([event, str(arguments)[:200], [f.filename for f in traceback.extract_stack()]])

watching = False
sys.addaudithook(hook)
import torch
loads = []
torch.load = lambda *a, **k: loads.append(str(a)[:200])
sys.path.insert(0, sys.argv[2])
from polyps import write_site
import polypfed as pf
from polypfed.report import write_report

root = Path(sys.argv[1])
for name in "ab":
    write_site(root / name / "train", 4, seed=ord(name))
    write_site(root / name / "val", 3, seed=ord(name) + 9)

def fed():
    clients = [
        pf.clients.DetectorClient(
            n, root / n / "train", root / n / "val", imgsz=64, batch=4, directory=root / "run" / "sites" / n
        )
        for n in "ab"
    ]
    return pf.Federation(clients=clients, strategy=pf.strategies.Scaffold(option="I"), evaluate="matrix")

client = fed().clients[0]
client.initial()  # imports all that is imported late, whose compiled files Python reads with marshal
watching = True
fed().run(1, pf.backends.Local(), root / "run")
fed().resume(root / "run", 2, pf.backends.Local())
pf.Federation(clients=fed().clients, stages=pf.privacy.stages("plain")).run(0, pf.backends.Local())
watching = False
ours = [s for s in seen if s[0] == "pickle.find_class" or not any("importlib" in f for f in s[2])]
ours = [s for s in ours if not any("/numba/" in f for f in s[2])]  # its compiled code, as much trusted as a .pyc
print(json.dumps({"pickles": ours, "torch.load": loads}))
"""


@pytest.mark.skipif(not find_spec("ultralytics"), reason="no ultralytics: install polypfed[yolo]")
def test_a_federation_of_detectors_unpickles_nothing(tmp_path: Path) -> None:
    """`pickle.find_class` is raised by every unpickler, the one written in C among them, whoever calls it."""
    command = [sys.executable, "-c", WATCHED, str(tmp_path), str(ROOT / "tests" / "clients")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"pickles": [], "torch.load": []}


def test_the_hook_would_have_seen_one() -> None:
    program = (
        "import sys, pickle; seen = []; sys.addaudithook(lambda e, a: seen.append(e)); "
        "pickle.loads(pickle.dumps(len)); print('pickle.find_class' in seen)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def torch_file(data: bytes, path: Path) -> bytes:
    """As torch writes its own: a zip with a pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", data)
        archive.writestr("weights/version", "3\n")
    return path.read_bytes()


READERS: dict[str, Callable[[Path], Any]] = {
    "message": lambda p: decode(p.read_bytes()),
    "model": load_model,
    "checkpoint": _read,
    "framed file": read_framed,
    "template": Template.open,
    "tflite": lambda p: TFLite(p.read_bytes()),
    "image": lambda p: open_image(p.rename(p.with_suffix(".png"))),
    "labels": lambda p: read_labels(p, (64, 64)),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("form", ["pickle", "torch", "npy"])
def test_a_file_that_would_act_is_refused_and_does_not(tmp_path: Path, reader: Any, form: str) -> None:
    mark, path = tmp_path / "acted", tmp_path / "weights.pt"
    data = pickle.dumps(Bomb(mark))
    if form == "torch":
        data = torch_file(data, path)
    elif form == "npy":
        with open(path, "wb") as file:
            np.save(file, np.array([Bomb(mark)], object), allow_pickle=True)
        data = path.read_bytes()
    path.write_bytes(data)
    with pytest.raises(PolypfedError):
        reader(path)
    assert not mark.exists()


def test_the_bomb_works_where_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "acted")))  # noqa: S301 - our own
    assert (tmp_path / "acted").is_dir()


def test_a_log_that_is_a_pickle_is_no_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "acted")))
    assert not verify(path).good
    assert not (tmp_path / "acted").exists()
