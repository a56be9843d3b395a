"""The proxy itself: calm it is a wire, and every fault it knows happens."""

import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.live.chaos import FAULTS, Chaos


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(1 << 16):
                        connection.sendall(data)
                except OSError:
                    return

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(echo: int) -> Iterator[Chaos]:
    chaos = Chaos(echo)
    yield chaos
    chaos.close()


def said(port: int, words: bytes) -> bytes:
    """What comes back until the connection ends, or four seconds are over."""
    with socket.create_connection(("127.0.0.1", port), 4) as connection:
        connection.sendall(words)
        connection.shutdown(socket.SHUT_WR)
        got = b""
        try:
            while data := connection.recv(1 << 16):
                got += data
        except OSError:
            pass
        return got


def test_calm_it_changes_nothing(proxy: Chaos) -> None:
    words = bytes(range(256)) * 4000
    assert said(proxy.port, words) == words


def test_every_fault_happens_and_a_seed_repeats_them(proxy: Chaos) -> None:
    def all_said() -> tuple[list[bytes], Counter[str]]:
        proxy.unrest(3, 0.5)
        return [said(proxy.port, b"0123456789") for _ in range(24)], proxy.seen

    first, seen = all_said()
    assert set(FAULTS) < set(seen)
    assert {b"", b"0123456789", b"01234567890123456789"} < set(first)
    assert any(sorted(f) == sorted(b"0123456789") and f != b"0123456789" for f in first)
    assert all_said() == (first, seen)
