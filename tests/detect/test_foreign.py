"""PyTorch files of others: weights come through to the last bit, whatever else is in a file does nothing."""

import pickle
import zipfile
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from polypfed.cli import app
from polypfed.core.errors import DataError
from polypfed.detect.foreign import import_weights
from polypfed.detect.warm import warm_start, weights_of
from tests.test_no_pickle import Bomb, torch_file

pytestmark = pytest.mark.skipif(not find_spec("torch"), reason="no torch: install polypfed[yolo]")


def saved(what: Any, path: Path, **settings: Any) -> Path:
    import torch

    torch.save(what, path, **settings)  # as a stranger does
    return path


def test_weights_come_through_to_the_last_bit(tmp_path: Path) -> None:
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    file = saved({"epoch": 3, "state_dict": net.state_dict()}, tmp_path / "foreign.pt")
    done = CliRunner().invoke(app, ["import-weights", str(file), str(tmp_path / "w.safetensors")])
    assert done.exit_code == 0, done.output
    assert "6 arrays" in done.output
    arrays = {name: np.zeros(value.shape, np.float32) for name, value in net.state_dict().items() if value.ndim}
    report = warm_start(arrays, tmp_path / "w.safetensors")
    assert report.share == 1
    assert all((arrays[name] == net.state_dict()[name].numpy()).all() for name in arrays)


def test_types_that_numpy_lacks_and_views_are_read_as_meant(tmp_path: Path) -> None:
    import torch

    whole = torch.arange(6.0).reshape(2, 3)
    weights = {"bf": whole.bfloat16(), "half": whole.half(), "view": whole.T, "twice": whole, "note": "trained at noon"}
    file = saved(OrderedDict(weights), tmp_path / "foreign.pt")
    found = import_weights(file, tmp_path / "w.safetensors")
    assert (found.arrays, found.values, found.skipped) == (4, 24, ("note",))
    arrays = weights_of(tmp_path / "w.safetensors")
    assert {name: array.dtype for name, array in arrays.items()} == dict.fromkeys(arrays, np.float32)
    assert all((arrays[name] == whole.numpy()).all() for name in ("bf", "half", "twice"))
    assert (arrays["view"] == whole.numpy().T).all()


@pytest.mark.parametrize("form", ["zip", "bare", "within"])
def test_a_file_that_would_act_is_refused_and_does_not(tmp_path: Path, form: str) -> None:
    mark, file = tmp_path / "acted", tmp_path / "foreign.pt"
    if form == "zip":
        torch_file(pickle.dumps(Bomb(mark)), file)
    elif form == "bare":
        file.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        import torch

        saved({"w": torch.zeros(2), "hook": Bomb(mark)}, file)
    with pytest.raises(DataError, match="keep its weights alone"):
        import_weights(file, tmp_path / "w.safetensors")
    assert not mark.exists()
    assert not (tmp_path / "w.safetensors").exists()


def test_a_model_as_an_object_is_refused_with_the_way_out(tmp_path: Path) -> None:
    import torch

    file = saved({"model": torch.nn.Linear(2, 2)}, tmp_path / "foreign.pt")
    with pytest.raises(DataError) as refused:
        import_weights(file, tmp_path / "w.safetensors")
    assert str(refused.value).startswith(f"{file}: holds more than weights")
    assert "torch.save(model.state_dict()" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_whatever_runs_in_the_reader_starts_nothing_and_writes_nothing(tmp_path: Path) -> None:
    """The second wall: as if PyTorch's reader could be talked into calling a function."""
    import subprocess
    import sys

    program = f"""
import sys
sys.argv = ["x", "a", {str(tmp_path / "allowed")!r}]
from polypfed.detect.foreign import _deny
import os, pickle, socket, subprocess
good = pickle.dumps(len)
sys.addaudithook(_deny)
for act in (lambda: os.system("true"), lambda: subprocess.run(["true"]), lambda: socket.socket(), lambda: os.mkdir("x"),
            lambda: open({str(tmp_path / "x")!r}, "w"), lambda: pickle.loads(good), lambda: eval("1")):
    try:
        act()
    except PermissionError:
        print("denied")
open(sys.argv[2], "wb").close()
open(__import__("polypfed").__file__).close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.split() == ["denied"] * 7, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["allowed"]


def bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", b"\0" * 3_000_000)
    return path


def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path) -> None:
    import torch

    target = tmp_path / "w.safetensors"
    cut = saved({"w": torch.zeros(900)}, tmp_path / "cut.pt")
    cut.write_bytes(cut.read_bytes()[:-200])
    old = saved({"w": torch.zeros(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    cases = {
        tmp_path / "none.pt": "no such file",
        cut: "is no zip",
        old: "is no zip",
        bomb(tmp_path / "bomb.pt"): "unpacks to 3000000 bytes",
        saved({"step": 3}, tmp_path / "empty.pt"): "a dict without a tensor",
        saved([torch.zeros(2)], tmp_path / "list.pt"): "a list, no state dict",
        saved({"w": torch.full((2,), torch.nan)}, tmp_path / "nan.pt"): "not finite",
        saved({"n": torch.tensor([1])}, tmp_path / "whole.pt"): "no floating-point array",
    }
    for file, words in cases.items():
        with pytest.raises(DataError, match=words) as refused:
            import_weights(file, target, limit=1_000_000)
        assert "\n" not in str(refused.value)
        assert not target.exists()
    target.write_bytes(b"")
    with pytest.raises(DataError, match="is there already"):
        import_weights(cut, target)
    wrong = CliRunner().invoke(app, ["import-weights", str(cut), str(tmp_path / "w.pt")])
    assert "must end in .safetensors" in str(wrong.exception)
