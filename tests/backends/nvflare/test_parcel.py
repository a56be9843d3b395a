"""Large messages between processes of one machine."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from polypfed.backends.nvflare.parcel import receive, send

SIZES = [0, 1, 65_535, 65_536, 3_000_001]


def echo(pipe: Any) -> None:
    """Send on what comes, unread."""
    while True:
        try:
            send(pipe, receive(pipe))
        except EOFError:
            return


def handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("shared", [True, False])
def test_messages_of_any_size_go_there_and_back(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shared:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=echo, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    before = handles()
    for size in SIZES:
        sent = os.urandom(size)
        send(ours, sent)
        got = receive(ours)
        assert bytes(got.data) == sent
        assert got.data.readonly
    assert handles() <= before + 3  # the last parcel alone is open
    ours.close()
    process.join(20)
    assert process.exitcode == 0


def test_a_parcel_whose_sender_is_gone_is_an_end_of_file() -> None:
    ours, theirs = multiprocessing.Pipe()
    theirs.send_bytes((1 << 20).to_bytes(8))
    theirs.close()
    with pytest.raises(EOFError):
        receive(ours)
