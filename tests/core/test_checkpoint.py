import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed.core import checkpoint as checkpoints
from polypfed.core.checkpoint import Checkpoint
from polypfed.core.errors import CheckpointError
from polypfed.core.files import read_framed, write_framed
from polypfed.core.model import ModelSpec

ARRAYS = {"w": np.array([[1, 2]], np.float32), "m": np.array([3], np.float32), "n": np.array(1)}
SPEC = ModelSpec.of(ARRAYS, buffers=["m"])


def made(number: int = 1, **change: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "run": "abc",
        "settings": {"seed": 1, "strategy": {"name": "fedavg", "eta": 0.1}},
        "round": number,
        "spec": SPEC,
        "x": SPEC.pack(ARRAYS) + np.float32(number),
        "state": {"m": np.array([1e-30, 2], np.float32), "v": np.arange(4.0)[::2], "t": number, "beta": 0.1},
        "accepted": {"a": 1, "b": number},
        "rows": 12,
        "failures": 3,
        "best": np.array([9, 9, 9], np.float32),
        "best_round": 1,
        "best_value": 0.1 + 0.2,
        "best_sites": 2,
    }
    return Checkpoint(**(values | change))


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    for f in fields(Checkpoint):
        left, right = getattr(a, f.name), getattr(b, f.name)
        if f.name == "state":
            assert set(left) == set(right)
            for key, value in left.items():
                assert type(value) is type(right[key])
                assert np.asarray(value).dtype == np.asarray(right[key]).dtype
                np.testing.assert_array_equal(value, right[key])
        elif isinstance(left, np.ndarray):
            assert (left.dtype, left.tobytes()) == (right.dtype, right.tobytes())
        else:
            assert left == right, f.name


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, made(7))
    assert_same(made(7), checkpoints.load(tmp_path))


def test_one_without_state_and_best_too(tmp_path: Path) -> None:
    plain = made(0, state={}, best=None, best_value=None, best_round=0, best_sites=0, accepted={})
    checkpoints.save(tmp_path, plain)
    assert_same(plain, checkpoints.load(tmp_path))


def test_every_field_is_in_the_file(tmp_path: Path) -> None:
    """A field that is added and forgotten in `save` would be lost in a resume without a word."""
    checkpoints.save(tmp_path, made(1))
    header, _ = read_framed(next(tmp_path.iterdir()))
    assert {f.name for f in fields(Checkpoint)} - set(header) == {"x", "state", "best", "bases"}


def test_three_generations_stay(tmp_path: Path) -> None:
    assert not checkpoints.exists(tmp_path / "none")
    for number in range(6):
        path = checkpoints.save(tmp_path, made(number))
        assert path.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"round-{n:06d}.ckpt" for n in (3, 4, 5)]
    assert checkpoints.exists(tmp_path)
    assert checkpoints.load(tmp_path).round == 5


def test_rounds_are_ordered_by_number_across_digits(tmp_path: Path) -> None:
    for number in (9, 10, 99, 100):
        checkpoints.save(tmp_path, made(number))
    assert checkpoints.load(tmp_path).round == 100
    assert sorted(int(p.stem.split("-")[1]) for p in tmp_path.iterdir()) == [10, 99, 100]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for number in range(5):
        checkpoints.save(tmp_path, made(number))
    assert (tmp_path / "notes.txt").exists()


def test_any_flipped_byte_falls_back_one_generation_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints.save(tmp_path, made(1))
    path = checkpoints.save(tmp_path, made(2))
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with caplog.at_level(logging.WARNING):
            assert checkpoints.load(tmp_path).round == 1
        assert "round-000002.ckpt: is damaged" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("length", [0, 1, 8, 9, 48, 49, 60, -1])
def test_any_truncation_falls_back(tmp_path: Path, length: int) -> None:
    for number in (1, 2, 3):
        path = checkpoints.save(tmp_path, made(number))
    for number in (3, 2):
        path = tmp_path / f"round-{number:06d}.ckpt"
        path.write_bytes(path.read_bytes()[:length])
    assert_same(made(1), checkpoints.load(tmp_path))


def test_none_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no usable checkpoint"):
        checkpoints.load(tmp_path)
    checkpoints.save(tmp_path, made(1)).write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds no usable checkpoint"):
        checkpoints.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda header, body: (header | {"spec": {"parts": [["w", [5]]], "boundary": 5, "local": []}}, body),
        lambda header, body: ({k: v for k, v in header.items() if k != "accepted"}, body),
        lambda header, body: (header, b""),
        lambda header, body: (header | {"numbers": 3}, body),
    ],
)
def test_a_file_of_another_version_is_not_misread(tmp_path: Path, change: Any) -> None:
    path = checkpoints.save(tmp_path, made(1))
    write_framed(path, *change(*read_framed(path)))
    with pytest.raises(CheckpointError, match="holds no usable"):
        checkpoints.load(tmp_path)


def test_a_state_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, made(1))
    with pytest.raises(CheckpointError, match="cannot be written"):
        checkpoints.save(tmp_path, made(2, state={"t": float("nan")}))
    assert checkpoints.load(tmp_path).round == 1
