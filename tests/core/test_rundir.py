import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from polypfed.core.checkpoint import Checkpoint
from polypfed.core.errors import CheckpointError, ConfigError
from polypfed.core.history import History, row
from polypfed.core.messages import Failure
from polypfed.core.model import ModelSpec
from polypfed.core.rundir import RunDirectory, load_model, machine, save_model

ARRAYS = {"w": np.array([[1, 2]], np.float32), "m": np.array([3], np.float32), "n": np.array(1)}
SPEC = ModelSpec.of(ARRAYS, buffers=["m"])


def point(number: int, **change: Any) -> Checkpoint:
    values: dict[str, Any] = {"state": {}, "x": SPEC.pack(ARRAYS) + np.float32(number), **change}
    return Checkpoint("abc", {}, number, SPEC, **values)


def grown(history: History, number: int) -> History:
    history.rows += [row(number, "a", "map50", 0.1), row(number, "", "map50", 0.2)]
    history.failures.append(Failure("b", number, "crashed", "x", "abc"))
    return history


def test_a_run_is_written_and_read_back(tmp_path: Path) -> None:
    history = History()
    with RunDirectory(tmp_path / "run") as folder:
        assert not folder.started
        folder.begin({"run": "abc"})
        now = point(0)
        for number in range(3):
            now.round, now.x = number, SPEC.pack(ARRAYS) + np.float32(number)
            folder.commit(now, grown(history, number))
        assert folder.started
        again, read = folder.restore()
    assert (again.round, again.rows, again.failures) == (2, 6, 3)
    assert again.x.tolist() == [3, 4, 5]
    assert read.rows == history.rows
    assert read.failures == history.failures
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history.rows
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["run"] == "abc"
    assert about["started"].endswith("+00:00")


def test_what_was_written_after_the_checkpoint_is_cut_off(tmp_path: Path) -> None:
    history = History()
    with RunDirectory(tmp_path) as folder:
        folder.begin({})
        folder.commit(point(0), grown(history, 0))
        with open(tmp_path / "history.jsonl", "a") as file:
            file.write('{"round": 1, "site": "a", "metric": "map50", "value": 0.5}\n{"round": 1, "si')
        with open(tmp_path / "failures.jsonl", "a") as file:
            file.write("\n\n\n")
        _, read = folder.restore()
    assert read.rows == history.rows
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2
    assert len((tmp_path / "failures.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("content", [None, "", "{}\n", "not json\n{}\n"])
def test_a_history_shorter_than_the_checkpoint_says_is_an_error(tmp_path: Path, content: str | None) -> None:
    with RunDirectory(tmp_path) as folder:
        folder.begin({})
        folder.commit(point(0), grown(History(), 0))
        path = tmp_path / "history.jsonl"
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(CheckpointError, match=r"history\.jsonl"):
            folder.restore()


def test_a_folder_that_holds_a_run_is_not_begun_anew(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as folder:
        folder.begin({"run": "first"})
        folder.begin({"run": "killed before its first checkpoint"})
        folder.commit(point(0), History())
        with pytest.raises(ConfigError, match="holds a run already"):
            folder.begin({})
    assert "killed" in (tmp_path / "run.json").read_text()


def test_the_best_model_is_written_when_it_changes(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as folder:
        folder.begin({})
        folder.commit(point(0), History())
        assert not (tmp_path / "best.safetensors").exists()
        best = SPEC.pack(ARRAYS) * 2
        folder.commit(point(1, best=best, best_round=1), History())
        written = (tmp_path / "best.safetensors").stat().st_mtime_ns
        folder.commit(point(2, best=best, best_round=1), History())
        assert (tmp_path / "best.safetensors").stat().st_mtime_ns == written
        assert folder.restore()[0].best is not None
    assert load_model(tmp_path / "best.safetensors")[1].tolist() == best.tolist()
    assert load_model(tmp_path / "model.safetensors")[1].tolist() == (SPEC.pack(ARRAYS) + 2).tolist()


def test_only_one_process_works_in_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from polypfed.core.rundir import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])): pass"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with RunDirectory(tmp_path):
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "another process is working in this folder" in other.stderr
        with pytest.raises(ConfigError, match="another process"), RunDirectory(tmp_path):
            pass
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    for name in ("spool/a.update", "checkpoint/.round-000001.ckpt.0123abcd.tmp", ".run.json.0123abcd.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    with RunDirectory(tmp_path) as folder:
        assert not folder.spool.exists()
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [".lock"]


def test_a_path_that_cannot_be_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="cannot hold a run"), RunDirectory(path):
            pass


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History()
    with RunDirectory(tmp_path) as folder:
        folder.begin({})
        folder.commit(point(0), grown(history, 0))

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(
                CheckpointError, match=r"cannot be written \(No space left on device\). Free some space"
            ):
                folder.commit(point(1), grown(history, 1))
        again, read = folder.restore()
    assert again.round == 0
    assert len(read.rows) == 2


def test_a_model_file_holds_arrays_under_their_own_names(tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", SPEC, SPEC.pack(ARRAYS))
    arrays = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert {k: v.tolist() for k, v in arrays.items()} == {"w": [[1, 2]], "m": [3]}
    spec, vector = load_model(tmp_path / "m.safetensors")
    assert (spec, vector.tolist()) == (SPEC, [1, 2, 3])


def test_the_same_model_is_the_same_file(tmp_path: Path) -> None:
    files = {i: tmp_path / f"{i}.safetensors" for i in range(20)}
    for path in files.values():
        save_model(path, SPEC, SPEC.pack(ARRAYS))
    assert len({path.read_bytes() for path in files.values()}) == 1


def test_what_is_not_a_model_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(CheckpointError, match="is not a polypfed model"):
        load_model(path)
    for data in (
        b"",
        b"text",
        safetensors.numpy.save({"w": np.zeros(2, np.float32)}),
        safetensors.numpy.save({"w": np.zeros(2, np.float32)}, {"polypfed": "[]"}),
        safetensors.numpy.save({"w": np.zeros(2, np.float32)}, {"polypfed": "{"}),
        safetensors.numpy.save({"w": np.zeros(2, np.float32)}, {"polypfed": json.dumps(SPEC.to_json())}),
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="is not a polypfed model"):
            load_model(path)


def test_the_machine_is_described() -> None:
    assert machine()["numpy"] == np.__version__
