"""`polypfed bench`: what this machine manages."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from polypfed.cli.show import console
from polypfed.core.errors import ConfigError


class _Named(TyperGroup):
    """A name that is no command is that of a study or a script of the checkout."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = not args or args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["named", *args])


app = typer.Typer(cls=_Named, help="Measure what this machine manages.", no_args_is_help=True)
_PASSED = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.callback()
def _group() -> None:
    """Measure what this machine manages."""


@app.command(context_settings=_PASSED, add_help_option=False)  # --help is the script's
def named(ctx: typer.Context, name: str) -> None:
    """A study or script of the checkout; the word "named" may be left out: polypfed bench communication."""
    if name == "--help":
        typer.echo(ctx.get_help())
        return
    places = [Path(__file__).parents[2] / "benchmarks", Path("benchmarks")]
    home = next((p.resolve() for p in places if (p / "studies" / "__main__.py").exists()), None)
    if home is None:
        raise ConfigError("needs a checkout of the project: benchmarks/ is not installed", where=f"bench {name}")
    studies = sorted(p.stem for p in (home / "studies").glob("*.toml"))
    programs = {p.stem.replace("_", "-").removeprefix("on-"): [str(p)] for p in home.glob("[a-z]*.py")}
    programs |= {p.parent.name: ["-m", p.parent.name] for p in home.glob("[a-z]*/__main__.py")}
    programs |= {study: ["-m", "studies", study] for study in studies}
    command = programs.get(name.replace("_", "-").removeprefix("on-"))
    if command is None:
        known = ", ".join([*studies, *sorted(set(programs) - {*studies, "studies"})])
        raise ConfigError(f"no benchmark is called {name!r}", where="bench", remedy=f"Known: {known}")
    path = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run([sys.executable, *command, *ctx.args], env=os.environ | {"PYTHONPATH": path}, check=False)
    raise typer.Exit(done.returncode)


@app.command()
def latency(
    models: Annotated[list[Path], typer.Argument(help=".tflite files of polypfed export; they take turns.")],
    frames: Annotated[Path | None, typer.Option(help="Folder of images; by default noise of 1280 x 1024.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Threads; may be given several times.")] = None,
    delegate: Annotated[str | None, typer.Option(help="Delegate library, with options: LIB,key:value.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Turns that count.")] = 50,
    watts: Annotated[float | None, typer.Option(help="Power that a meter shows meanwhile.")] = None,
    hwmon: Annotated[str | None, typer.Option(help="Power sensor to read, by its name.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="File to write as well.")] = None,
) -> None:
    """Time per inference and per frame, first inference, memory, power."""
    from itertools import islice

    from polypfed.core.files import write_atomic
    from polypfed.detect.latency import USABLE, measure, report
    from polypfed.detect.runtime import Delegate, cores
    from polypfed.detect.sources import Source

    some = [f.pixels for f in islice(Source(str(frames)).frames(), 64)] if frames else []
    library = Delegate.parse(delegate) if delegate else None
    with console.status("measuring"):
        rows = measure(models, threads or [cores()], library, some, runs, watts, hwmon)
    about = report(rows)
    network = Table("model", "NPU", "precision", "threads", "ms", "FPS", "W", "FPS/W", box=None)
    around = Table("model", "threads", "p99 ms", "whole frame FPS", "first ms", "load ms", "MB", box=None)
    for row in rows:
        power = f"{row.watts:.2f}" if row.watts else "-"
        per_watt = f"{row.fps / row.watts:.2f}" if row.watts else "-"
        name, threads_of = row.model, str(row.threads)
        numbers = f"{row.invoke['mean']:.1f}", f"{row.fps:.1f}", power, per_watt
        network.add_row(name, "yes" if row.npu else "no", row.precision, threads_of, *numbers)
        rest = f"{row.frame_fps:.1f}", f"{row.first_ms:.0f}", f"{row.load_ms:.0f}", f"{row.memory_mb:.0f}"
        around.add_row(name, threads_of, f"{row.invoke['p99']:.1f}", *rest)
    console.print(f"{about['machine']['cpu']}, {about['machine']['cores']} cores, {about['machine']['runtime']}")
    console.print(network)
    console.print(around)
    usable = [r.model for r in rows if r.frame_fps >= USABLE]
    console.print(
        f"At least {USABLE:.0f} whole frames per second: {', '.join(dict.fromkeys(usable)) or 'none'}", markup=False
    )
    if as_json is not None:
        write_atomic(as_json, json.dumps(about, indent=1).encode() + b"\n")
