"""A process that ends itself when its work takes too long: Flower waits for a hung client for ever."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

_LOOK = 0.25  # seconds


@contextmanager
def cut_off(deadline: float, alive: Path | None = None) -> Iterator[None]:
    """End this process if the block is not left within `deadline` seconds, or once the folder `alive` is gone."""
    done, end = threading.Event(), monotonic() + deadline
    watched = alive if alive is not None and alive.exists() else None  # another machine does not have it

    def watch() -> None:
        while not done.wait(min(_LOOK, max(0.0, end - monotonic()))):
            if monotonic() >= end or (watched is not None and not watched.exists()):
                os._exit(70)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
