import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from polypfed.core import files
from polypfed.core.errors import CheckpointError
from polypfed.core.files import read_framed, sweep, write_atomic, write_framed


def test_parts_are_joined_and_folders_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.bin"
    write_atomic(path, b"one", b"", b"two")
    assert path.read_bytes() == b"onetwo"
    write_atomic(path, b"new")
    assert [p.name for p in path.parent.iterdir()] == ["b.bin"]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "b.bin"
    write_atomic(path, b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["b.bin"]
    assert path.read_bytes() == b"old"


def test_the_data_is_on_the_disk_before_its_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: (calls.append(n), r(*a))[1])
    write_atomic(tmp_path / "x", b"data")
    assert calls == ["fsync", "replace", "fsync"]  # the file, the name, the folder


def test_a_sweep_takes_what_a_kill_left_and_nothing_else(tmp_path: Path) -> None:
    left = tmp_path / "sub" / ".model.safetensors.0a1b2c3d.tmp"
    kept = [tmp_path / n for n in (".lock", "model.safetensors", "x.tmp", ".mine.tmp", ".x.0a1b2c3d")]
    left.parent.mkdir()
    for path in [left, *kept]:
        path.write_bytes(b"x")
    sweep(tmp_path)
    assert not left.exists()
    assert all(path.exists() for path in kept)


def test_the_name_of_a_temporary_is_what_a_sweep_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", lambda *a: None)
    monkeypatch.setattr(Path, "unlink", lambda *a, **k: None)
    write_atomic(tmp_path / "x", b"data")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_framed_file_gives_header_and_body_back(tmp_path: Path) -> None:
    write_framed(tmp_path / "f", {"a": [1, "é"]}, b"\x00body")
    assert read_framed(tmp_path / "f") == ({"a": [1, "é"]}, b"\x00body")


def test_the_layout_of_a_framed_file(tmp_path: Path) -> None:
    """Written by hand: magic, SHA-256 of the rest, length of the header, header, body."""
    head = json.dumps({"k": 1}).encode()
    rest = struct.pack("<Q", len(head)) + head + b"body"
    (tmp_path / "f").write_bytes(b"PFEDFILE1" + hashlib.sha256(rest).digest() + rest)
    assert read_framed(tmp_path / "f") == ({"k": 1}, b"body")


def test_every_flipped_byte_and_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_framed(path, {"round": 3}, b"0123456789")
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x40]) + whole[i + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            read_framed(path)
        path.write_bytes(whole[:i])
        with pytest.raises(CheckpointError, match=r"damaged|cut short"):
            read_framed(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        read_framed(path)


def test_a_missing_file_says_where(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nope: cannot be read \(No such file"):
        read_framed(tmp_path / "nope")


def test_a_whole_file_with_a_wrong_header_is_refused(tmp_path: Path) -> None:
    rest = struct.pack("<Q", 2) + b"[]"
    (tmp_path / "f").write_bytes(b"PFEDFILE1" + hashlib.sha256(rest).digest() + rest)
    with pytest.raises(CheckpointError, match="not a JSON object"):
        read_framed(tmp_path / "f")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_a_header_that_could_not_be_read_is_not_written(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_framed(tmp_path / "f", {"state": value})
    assert list(tmp_path.iterdir()) == []


def test_nothing_here_needs_more_than_the_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writers of one name: the last replace wins, whole."""
    real = os.replace

    def race(source: Any, target: Any) -> None:
        monkeypatch.setattr(os, "replace", real)
        files.write_atomic(Path(target), b"other")
        real(source, target)

    monkeypatch.setattr(os, "replace", race)
    write_atomic(tmp_path / "x", b"mine")
    assert (tmp_path / "x").read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 1
