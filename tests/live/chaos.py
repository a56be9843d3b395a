"""A TCP proxy on the loopback interface that delays, cuts, truncates, repeats and reorders what passes through it."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from polypfed.core import audit

FAULTS = ("delay", "cut", "truncate", "duplicate", "reorder")
_CHUNK = 1 << 14
_LONGEST = 1.0  # seconds of a delay


def missing(log: Path) -> Counter[tuple[str, int]]:
    """Who did not count in the attempt of a round that was completed, by a server's audit log."""
    found = dict[int, set[str]]()
    for entry in audit.entries(log):
        if entry["event"] == "round":  # begins, or begins anew
            found[entry["round"]] = set()
        elif entry["event"] == "failure":
            found.setdefault(entry["round"], set()).add(entry["actor"])
    return Counter((name, number) for number, names in found.items() for name in names)


class Chaos:
    """Forwards to 127.0.0.1:`target`; calm until `unrest` is called. Its threads and sockets end with `close`.

    Every connection draws from the seed and its own number, so a connection that carries the same bytes in the same
    pieces meets the same faults. Which process opens which connection first is not the proxy's to say.

    Attributes:
        port: where it listens.
        seen: how many pieces of data passed, and how many met which fault, since `unrest` was last called.
    """

    def __init__(self, target: int) -> None:
        self.target, self.port, self.seen = target, 0, Counter[str]()
        self._seed: int | None = None
        self._rate, self._connections = 0.0, 0
        self._tasks = set[asyncio.Task[bool]]()  # a loop holds its tasks weakly, and streams do so with their readers
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def unrest(self, seed: int, rate: float) -> None:
        """From now on a piece of data meets a fault with this probability."""
        self._seed, self._rate, self._connections, self.seen = seed, rate, 0, Counter()

    def calm(self) -> None:
        """Forward everything as it is."""
        self._rate = 0.0

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        open_ones = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_ones:
            task.cancel()
        await asyncio.wait(open_ones, timeout=5) if open_ones else None

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number = self._connections
        try:
            onward, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        draws = [random.Random(f"{self._seed} {number} {way}") for way in ("up", "down")]
        ways = {
            asyncio.create_task(self._pump(reader, back, draws[0])),
            asyncio.create_task(self._pump(onward, writer, draws[1])),
        }
        self._tasks |= ways
        await self._until_cut(ways, (writer, back))
        self._tasks -= ways

    async def _until_cut(self, ways: set["asyncio.Task[bool]"], ends: tuple[asyncio.StreamWriter, ...]) -> None:
        """Both ways go on until one is cut or both have ended."""
        left = set(ways)
        try:
            while left:
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                if any(task.result() for task in done):
                    break
        finally:
            for task in left:
                task.cancel()
            for end in ends:
                with suppress(OSError):
                    end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random) -> bool:
        """One way; True if it was cut."""
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                self.seen["pieces"] += 1
                fault = draw.choice(FAULTS) if draw.random() < self._rate else ""
                self.seen[fault] += bool(fault)
                if fault == "cut":
                    return True
                if fault == "delay":
                    await asyncio.sleep(draw.uniform(0, _LONGEST))
                writer.write(_CHANGES.get(fault, _same)(data, draw))
                await writer.drain()
                if fault == "truncate":
                    return True
            writer.write_eof()
            return False
        return True


Change = Callable[[bytes, random.Random], bytes]


def _same(data: bytes, draw: random.Random) -> bytes:
    return data


def _swapped(data: bytes, draw: random.Random) -> bytes:
    middle = draw.randrange(len(data)) if len(data) > 1 else 0
    return data[middle:] + data[:middle]


_CHANGES: dict[str, Change] = {
    "truncate": lambda data, draw: data[: draw.randrange(len(data))],
    "duplicate": lambda data, draw: data + data,
    "reorder": _swapped,
}
