"""The sample store: what is kept, what a thief or a full disk finds, and what may be trained on."""

import os
import stat

import numpy as np
import pytest

pytest.importorskip("cryptography", reason="install polypfed[edge]")

from polypfed.core import files
from polypfed.core.errors import ConfigError, DataError
from polypfed.data.store import SampleStore, Vault
from polypfed.data.store import store as module

RNG = np.random.default_rng(0)


def frame(height: int = 24, width: int = 32) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def vault(tmp_path) -> Vault:
    return Vault(tmp_path / "key" / "store.key")


@pytest.fixture
def store(tmp_path, vault):
    clock = iter(range(1000, 10**6)).__next__
    with SampleStore(tmp_path / "store", vault, clock=lambda: float(clock())) as opened:
        yield opened


def test_what_goes_in_comes_out(store, tmp_path, vault):
    pixels = frame()
    kept = store.add(pixels, 0.41, "round-1", name="exam 7/frame 12.png")
    store.add(frame(), 0.93, "round-1", kept=False)
    store.score(kept, 0.66, "round-2")
    assert (store.image(kept) == pixels).all()
    assert store.name(kept) == "exam 7/frame 12.png"
    (record,) = store.records()
    assert (record.id, record.size, record.confidence, record.model) == (kept, (32, 24), 0.66, "round-2")
    assert [row[1:] for row in store.scores(kept)] == [("round-1", 0.41, True), ("round-2", 0.66, True)]
    counts = store.counts()
    assert (counts["seen"], counts["kept"], counts["none"]) == (2, 1, 1)
    store.close()
    with SampleStore(tmp_path / "store", vault) as again:
        assert (again.image(kept) == pixels).all()


def test_nothing_readable_lies_on_the_disk(store, tmp_path):
    pixels = np.full((24, 32, 3), 77, np.uint8)
    kept = store.add(pixels, 0.4, "m", name="PATIENT-NAME")
    store.label(kept, [[3, 4, 21, 17]], "dr-smith")
    everything = b"".join(p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file())
    for secret in (b"PATIENT-NAME", b"\x89PNG", b"[3.0, 4.0", b"IHDR"):
        assert secret not in everything
    key = tmp_path / "key" / "store.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key.read_bytes() not in everything


def test_changed_swapped_and_foreign_files(store, tmp_path, vault):
    first, second = store.add(frame(), 0.1, "m"), store.add(frame(), 0.2, "m")
    path, other = (tmp_path / "store" / "frames" / f"{f}.bin" for f in (first, second))
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], other.read_bytes(), b"", b"nonsense"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"was changed|not a file of this store"):
            store.image(first)
    path.write_bytes(whole)
    store.close()
    with (
        SampleStore(tmp_path / "store", Vault(tmp_path / "other.key")) as stranger,
        pytest.raises(DataError, match="key"),
    ):
        stranger.image(first)


def test_keys_that_are_not_right(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        Vault(tmp_path / "none.key", create=False)
    key = tmp_path / "k"
    key.write_bytes(b"short")
    with pytest.raises(DataError, match="a key has 32 bytes"):
        Vault(key)
    key.write_bytes(bytes(32))
    key.chmod(0o644)
    with pytest.raises(DataError, match="others may read"):
        Vault(key)


def test_only_a_persons_labels_are_trained_on(store):
    ids = [store.add(frame(), 0.1 * i, "m") for i in range(4)]
    assert store.trainable() == store.trainable(pseudo=True) == []
    store.label(ids[0], [[1, 1, 9, 9]], "dr")
    store.label(ids[1], [], "dr")
    store.label(ids[2], [[2, 2, 8, 8]], "round-3", pseudo=True)
    assert [r.id for r in store.trainable()] == ids[:2]
    with_guesses = store.trainable(pseudo=True)
    assert [(r.id, r.label, r.labelled_by) for r in with_guesses] == [
        (ids[0], "human", "dr"), (ids[1], "human", "dr"), (ids[2], "pseudo", "round-3"),
    ]  # fmt: skip
    store.label(ids[0], [[5, 5, 6, 6]], "round-4", pseudo=True)  # never over a person's
    assert store.boxes(ids[0]).tolist() == [[1, 1, 9, 9]]
    assert store.boxes(ids[1]).shape == (0, 4)
    store.label(ids[2], [[3, 3, 7, 7]], "dr")
    assert [r.id for r in store.records("pseudo")] == []
    with pytest.raises(DataError, match="has no label"):
        store.boxes(ids[3])


@pytest.mark.parametrize("boxes", [[[0, 0, 33, 9]], [[5, 5, 5, 9]], [[1, 2, 3]], [[np.nan, 0, 5, 5]], [[-2, 0, 5, 5]]])
def test_boxes_that_make_no_sense(store, boxes):
    kept = store.add(frame(), 0.1, "m")
    with pytest.raises(DataError, match=kept):
        store.label(kept, boxes, "dr")
    assert store.records("none")


def test_the_oldest_go_first_and_labels_last(tmp_path, vault):
    clock = iter(range(1000, 10**6)).__next__
    one = len(vault.seal(b"", "x")) + 2500
    with SampleStore(tmp_path / "s", vault, most_bytes=4 * one, clock=lambda: float(clock())) as store:
        ids = []
        for i in range(8):
            ids.append(store.add(frame(), 0.1, "m"))
            if i == 0:
                store.label(ids[0], [], "dr")
        left = [r.id for r in store.records()]
        assert left[0] == ids[0]
        assert left[1:] == ids[-(len(left) - 1) :]
        assert store.counts()["bytes"] <= 4 * one
        assert {p.stem for p in (tmp_path / "s" / "frames").iterdir()} == set(left)
        with pytest.raises(DataError, match="larger than the store"):
            store.add(frame(300, 300), 0.1, "m")


def test_retention(tmp_path, vault):
    now = [1000.0]
    with SampleStore(tmp_path / "s", vault, clock=lambda: now[0]) as store:
        old = store.add(frame(), 0.1, "m")
        store.add(frame(), 0.9, "m", kept=False)
        now[0] = 2000.0
        new = store.add(frame(), 0.1, "m")
        assert store.retain(500.0) == 1
        assert [r.id for r in store.records()] == [new]
        assert store.counts()["seen"] == 1
        assert not (tmp_path / "s" / "frames" / f"{old}.bin").exists()


def test_wiping_destroys_the_key_first(store, tmp_path, monkeypatch):
    kept = store.add(frame(), 0.1, "m")
    copy = (tmp_path / "store" / "frames" / f"{kept}.bin").read_bytes()
    store.wipe()
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "key" / "store.key").exists()
    with pytest.raises(DataError):
        Vault(tmp_path / "key" / "store.key").open(copy, kept)  # a new key


def test_a_full_disk_leaves_nothing_behind(store, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = store.add(frame(), 0.1, "m")
    monkeypatch.setattr(module, "write_atomic", full)
    with pytest.raises(DataError, match=r"cannot be written.*Free some space"):
        store.add(frame(), 0.1, "m")
    monkeypatch.setattr(module, "write_atomic", files.write_atomic)
    monkeypatch.setattr(store, "_score", full)
    with pytest.raises(DataError, match="cannot be written"):
        store.add(frame(), 0.1, "m")
    monkeypatch.undo()
    assert [r.id for r in store.records()] == [before]
    assert len(os.listdir(tmp_path / "store" / "frames")) == 1
    store.add(frame(), 0.2, "m")


def test_what_a_kill_left_is_tidied(store, tmp_path, vault):
    first, second = store.add(frame(), 0.1, "m"), store.add(frame(), 0.2, "m")
    store.close()
    (tmp_path / "store" / "frames" / "0123456789abcdef.bin").write_bytes(b"no row")
    (tmp_path / "store" / "frames" / f"{first}.bin").unlink()
    with SampleStore(tmp_path / "store", vault) as again:
        assert [r.id for r in again.records()] == [second]
    assert [p.stem for p in (tmp_path / "store" / "frames").iterdir()] == [second]


def test_folders_that_are_no_store(tmp_path, vault):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be used as a sample store"):
        SampleStore(tmp_path / "file", vault)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "store.db").write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match="cannot be used as a sample store"):
        SampleStore(tmp_path / "s", vault)


def test_unknown_frames_and_states(store):
    for act in (store.image, store.name, lambda f: store.score(f, 0.1, "m"), lambda f: store.label(f, [], "dr")):
        with pytest.raises(DataError, match="no such frame"):
            act("../../etc/passwd")
    with pytest.raises(ConfigError, match="no such state"):
        store.records("done")
