"""`polypfed device`: the service on a board: detect, keep hard frames, take over new global models."""

import contextlib
import signal
import threading
import time
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import typer

from polypfed.cli.show import console
from polypfed.core.errors import ConfigError


def device(
    source: Annotated[str, typer.Argument(help="Folder, video, camera (0, /dev/video0) or rtsp:// stream.")],
    template: Annotated[Path, typer.Option(help="Template of the models to come.")],
    models: Annotated[Path, typer.Option(help="Folder in which new global models arrive (.safetensors).")],
    store: Annotated[Path | None, typer.Option(help="Sample store for hard frames.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key file; made if it is missing.")] = None,
    store_gb: Annotated[float, typer.Option(min=0.001, help="What it may grow to.")] = 4.0,
    threshold: Annotated[float, typer.Option(help="Frames below it are hard.")] = 0.7,
    every: Annotated[int, typer.Option(min=1, help="Of hard frames in a row keep each so-manieth.")] = 10,
    threads: Annotated[int, typer.Option(help="Of the interpreter; 0 for all cores but one.")] = 0,
    delegate: Annotated[str | None, typer.Option(help="Delegate library, with options: LIB,key:value.")] = None,
    conf: Annotated[float, typer.Option(help="Least confidence shown.")] = 0.25,
    live: Annotated[bool, typer.Option(help="Show a live view in the browser of this machine.")] = False,
    port: Annotated[int, typer.Option(help="Of the live view; 0 takes a free one.")] = 8501,
) -> None:
    """Run the detector as a service. SIGTERM and SIGINT end it after the frame in work."""
    from polypfed.clients.device import Device, Inbox, serve
    from polypfed.data.store import SampleStore, Vault
    from polypfed.detect.live import LiveView
    from polypfed.detect.runtime import Delegate, cores
    from polypfed.detect.sources import Source
    from polypfed.detect.template import Template

    if store is not None and key is None:
        raise ConfigError("a store needs a key", where="--key", remedy="Name a file, best on another medium")
    where, stop = Source(source), threading.Event()
    with contextlib.ExitStack() as stack:
        kept = None
        if store is not None and key is not None:
            kept = stack.enter_context(SampleStore(store, Vault(key), most_bytes=int(store_gb * 1e9)))
        library = Delegate.parse(delegate) if delegate else None
        box = Device(
            Template.open(template), kept, threshold, every, threads=threads or max(1, cores() - 1), delegate=library
        )
        view = stack.enter_context(LiveView(port, threshold=threshold)) if live else None
        if view is not None:
            console.print(f"live view: {view.url}", markup=False)
        _until_told(stop)
        serve(box, where.frames, Inbox(models), stop=stop, shown=_shower(box, view, conf, threshold))
    console.print(", ".join(f"{count} {name}" for name, count in box.counts.items()), markup=False)


def _until_told(stop: threading.Event) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())


def _shower(box: Any, view: Any, conf: float, threshold: float) -> Any:
    from polypfed.detect.draw import annotate

    recent: deque[float] = deque([time.perf_counter()], maxlen=31)

    def shown(frame: Any, found: Any) -> None:
        recent.append(time.perf_counter())
        if view is not None:
            fps = (len(recent) - 1) / max(recent[-1] - recent[0], 1e-9)
            clear = found.above(conf)
            view.update(model=box.version, precision=box.adapted.precision)
            view.show(annotate(frame.pixels, clear, threshold), frame.number, len(clear), found.best, fps)

    return shown
