"""`polypfed device`: the service on a board: detect, keep hard frames, take over new global models."""

import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from polypfed.cli.show import console
from polypfed.core.errors import ConfigError


def device(
    source: Annotated[str, typer.Argument(help="A site.toml with [device]; or folder, video, camera, rtsp:// stream.")],
    template: Annotated[Path | None, typer.Option(help="Template of the models to come.")] = None,
    models: Annotated[Path | None, typer.Option(help="Folder in which new global models arrive.")] = None,
    store: Annotated[Path | None, typer.Option(help="Sample store for hard frames.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key file; made if it is missing.")] = None,
    store_gb: Annotated[float, typer.Option(min=0.001, help="What it may grow to.")] = 4.0,
    keep_samples_days: Annotated[int, typer.Option(min=0, help="Older frames are forgotten; 0: when it is full.")] = 0,
    threshold: Annotated[float, typer.Option(help="Frames below it are hard.")] = 0.7,
    every: Annotated[int, typer.Option(min=1, help="Of hard frames in a row keep each so-manieth.")] = 10,
    threads: Annotated[int, typer.Option(help="Of the interpreter; 0 for all cores but one.")] = 0,
    delegate: Annotated[str, typer.Option(help="Delegate library, with options: LIB,key:value.")] = "",
    conf: Annotated[float, typer.Option(help="Least confidence shown.")] = 0.25,
    live: Annotated[bool, typer.Option(help="Show a live view in the browser of this machine.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the live view.")] = 8501,
    repeat: Annotated[bool, typer.Option(help="Begin again when a folder or video ends.")] = False,
) -> None:
    """Run the detector as a service. SIGTERM and SIGINT end it after the frame in work."""
    from polypfed.clients.device_service import run
    from polypfed.clients.device_settings import DeviceSettings

    if source.endswith(".toml"):
        from polypfed.backends.device import settings_of

        settings = settings_of(Path(source))
        settings = replace(settings, live=settings.live or (port if live else 0))
    elif template is None or models is None:
        raise ConfigError("--template and --models are needed", where="device", remedy="Or name a site.toml")
    else:
        settings = DeviceSettings(
            source, template, models, store, key, store_gb, threshold, every, threads, delegate, conf,
            port if live else 0, repeat, keep_samples_days=keep_samples_days,
        )  # fmt: skip
    stop = threading.Event()
    _until_told(stop)
    counts: dict[str, Any] = run(settings, stop, lambda line: console.print(line, markup=False))
    console.print(", ".join(f"{count} {name}" for name, count in counts.items()), markup=False)


def _until_told(stop: threading.Event) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
