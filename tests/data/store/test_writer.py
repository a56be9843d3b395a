"""Frames through a thread: none waits for the disk, none is lost unsaid."""

import threading

import numpy as np
import pytest

pytest.importorskip("cryptography", reason="install polypfed[edge]")

from polypfed.core.errors import DataError
from polypfed.data.store import SampleStore, Vault, Writer
from polypfed.data.store import store as module
from polypfed.data.store import writer as writer_module

FRAME = np.zeros((24, 32, 3), np.uint8)


def opened(tmp_path) -> SampleStore:
    return SampleStore(tmp_path / "store", Vault(tmp_path / "k"))


def refuses(writer: Writer, said: str, kept: bool) -> bool:
    for _ in range(1000):
        try:
            writer.add(FRAME, 0.1, "m", kept=kept)
        except DataError as error:
            if said in str(error):
                return True
        threading.Event().wait(0.01)
    return False


def test_what_is_handed_over_is_written(tmp_path):
    with Writer(lambda: opened(tmp_path)) as writer:
        for number in range(5):
            writer.add(FRAME, number / 10, "m", kept=number % 2 == 0, name=f"f{number}")
    with opened(tmp_path) as store:
        assert (store.counts()["seen"], store.counts()["kept"]) == (5, 3)
        assert [store.name(r.id) for r in store.records()] == ["f0", "f2", "f4"]


def test_where_the_source_can_wait_nothing_is_lost(tmp_path):
    with Writer(lambda: opened(tmp_path), waiting=1, drop=False) as writer:
        for _ in range(20):
            writer.add(FRAME, 0.1, "m")
    with opened(tmp_path) as store:
        assert store.counts()["kept"] == 20


def test_a_disk_that_is_slow_or_full_is_said(tmp_path, monkeypatch):
    held, full, real = threading.Event(), threading.Event(), module.write_atomic

    def slow(path, *parts):
        held.wait(10)
        if full.is_set():
            raise OSError(28, "No space left on device")
        real(path, *parts)

    monkeypatch.setattr(module, "write_atomic", slow)
    with Writer(lambda: opened(tmp_path), waiting=2) as writer:
        assert refuses(writer, "faster than they can be written", kept=True)
        full.set()
        held.set()
        assert refuses(writer, "No space left", kept=False)
        full.clear()
        writer.add(FRAME, 0.1, "m")
    with opened(tmp_path) as store:
        assert store.counts()["kept"] >= 1


def test_a_store_that_cannot_be_opened(tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(DataError, match="cannot be used as a sample store"), Writer(lambda: opened(tmp_path)):
        pass


def test_one_process_opens_while_another_writes(tmp_path, monkeypatch):
    """What lies between its file and its row is no leftover."""
    opener, real = [], module.write_atomic

    def meanwhile(path, *parts):
        real(path, *parts)
        opener.append(threading.Thread(target=lambda: opened(tmp_path).close()))
        opener[0].start()
        opener[0].join(0.3)
        assert opener[0].is_alive()  # it waits for the write to be whole

    with opened(tmp_path) as store:
        monkeypatch.setattr(module, "write_atomic", meanwhile)
        frame = store.add(FRAME, 0.1, "m")
        opener[0].join()
        assert (store.image(frame) == FRAME).all()


def test_what_is_too_old_is_forgotten_at_the_start_and_while_no_frame_comes(tmp_path, monkeypatch):
    day, now = 86400.0, [0.0]

    def store() -> SampleStore:
        return SampleStore(tmp_path / "store", Vault(tmp_path / "k"), clock=lambda: now[0])

    def kept() -> list[str]:
        with store() as found:
            return [found.name(r.id) for r in found.records()]

    with store() as first:
        first.label(first.add(FRAME, 0.1, "m", name="old"), [[1, 2, 3, 4]], "Dr. A")
        now[0] = 50 * day
        first.add(FRAME, 0.1, "m", name="young")
    now[0] = 91 * day
    with Writer(store):
        pass
    assert kept() == ["old", "young"], "without a limit nothing goes"
    with Writer(store, keep_days=90):
        pass
    assert kept() == ["young"], "labelled or not"
    assert len(list((tmp_path / "store" / "frames").iterdir())) == 1
    monkeypatch.setattr(writer_module, "_EVERY", 0.01)
    with Writer(store, keep_days=90):
        now[0] = 141 * day
        for _ in range(1000):
            if not kept():
                break
            threading.Event().wait(0.01)
    assert kept() == []
