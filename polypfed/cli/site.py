"""`polypfed site`: join a federation from a site, or see beforehand what would be sent."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from polypfed.cli import policy
from polypfed.cli.codes import Code
from polypfed.cli.show import console

app = typer.Typer(help="A site of a deployment.", no_args_is_help=True, rich_markup_mode=None)
File = Annotated[Path, typer.Argument(help="The site's site.toml.")]


@app.command()
def run(
    file: File,
    worker: Annotated[bool, typer.Option(help="Keep model and data loaded between messages.")] = True,
    once: Annotated[bool, typer.Option("--once", help="Do not join again after the connection has ended.")] = False,
) -> None:
    """Join the federation and serve it until stopped."""
    from polypfed.backends.flower import site

    logging.getLogger("polypfed").setLevel(logging.INFO)
    raise typer.Exit(site.run(file, worker=worker, once=once))


@app.command("dry-run")
def dry_run(
    file: File,
    strategy: Annotated[str, typer.Option(help="Strategy whose client half is tried.")] = "fedavg",
    approve: Annotated[bool, typer.Option("--approve", help="If all is well, let the study run here.")] = False,
) -> None:
    """Check everything, train once, and show what would be sent; nothing is."""
    from polypfed.backends.flower.dry_run import dry_run as attempt

    with console.status("training once"):
        found = attempt(file, strategy)
    for line in found.lines():
        console.print(line, markup=False, highlight=False)
    if not found.good:
        raise typer.Exit(Code.ERROR)
    if approve:
        policy.approve_study(file)
    else:
        console.print(f"To let the study run here: polypfed site dry-run {file} --approve", markup=False)
