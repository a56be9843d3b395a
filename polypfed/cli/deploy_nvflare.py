"""`polypfed deploy nvflare` writes a deployment on NVFlare; `polypfed nvflare` is the administrator's end of one."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polypfed.cli.show import cells, console
from polypfed.core.errors import DataError

if TYPE_CHECKING:
    from polypfed.report.watch import Now

app = typer.Typer(help="A provisioned NVFlare deployment.", no_args_is_help=True, rich_markup_mode=None)
Kit = Annotated[Path, typer.Argument(help="The administrator's start-up kit.")]
Patience = Annotated[float, typer.Option(help="Seconds to wait for the server.")]


@app.callback()
def _quiet() -> None:
    logging.getLogger("nvflare").setLevel(logging.CRITICAL)  # it logs each attempt; what counts, our own line says


def nvflare(
    directory: Annotated[Path, typer.Argument(help="Folder to make; must not exist.")],
    study: Annotated[Path | None, typer.Option(help="The study's TOML file; server and sites get a copy.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="A site's name; once per site.")] = None,
    data: Annotated[list[Path] | None, typer.Option(help="Each site's folder of train/ and val/, in order.")] = None,
    host: Annotated[str, typer.Option(help="Name of the server, as sites reach it.")] = "localhost",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port for sites.")] = 8002,
    admin_port: Annotated[int, typer.Option(min=1, max=65535, help="Its port for administrators.")] = 8003,
    admin: Annotated[str, typer.Option(help="The administrator's e-mail address.")] = "admin@polypfed.org",
    org: Annotated[str, typer.Option(help="The organisation in the certificates.")] = "polypfed",
) -> None:
    """Write a deployment on NVFlare: provisioned kits with keys and certificates, settings, scripts, READMEs."""
    from polypfed.backends.nvflare import deploy

    names = site or []
    folders = [str(path.absolute()) for path in data or []]
    if folders and len(folders) != len(names):
        raise typer.BadParameter("give one --data for each --site, in the same order")
    settings = {n: {"data": p} for n, p in zip(names, folders or ["data"] * len(names), strict=True)}
    made = deploy.write(
        directory, deploy.Plan(names, host, port, admin_port, admin, org, study, settings=settings if study else None)
    )
    console.print(f"Written: {made}. Begin with {made / 'README.md'}", markup=False)


def register(commands: typer.Typer, deploy: typer.Typer) -> None:
    """Add `polypfed nvflare ...` to `commands` and `nvflare` to its group `deploy`."""
    deploy.command("nvflare")(nvflare)
    commands.add_typer(app, name="nvflare")


@app.command()
def fit(kit: Annotated[Path, typer.Argument(help="A start-up kit that NVFlare has provisioned.")]) -> None:
    """Make a kit fit for polypfed, and show what was changed; done twice, it changes nothing."""
    from polypfed.backends.nvflare.kit import fit_kit, validity

    for line in fit_kit(kit):
        console.print(line, markup=False, highlight=False)
    console.print(validity(kit), markup=False)


@app.command()
def run(
    kit: Kit,
    name: Annotated[str, typer.Option(help="Of the run; a run begun earlier is resumed.")] = "study",
    rounds: Annotated[int, typer.Option(min=0, help="Server rounds; 0 leaves them to the server's settings.")] = 0,
    directory: Annotated[Path | None, typer.Option("--directory", "-d", help="Where the result is put.")] = None,
    patience: Patience = 60.0,
) -> None:
    """Submit the run, watch it to its end, fetch its result."""
    from polypfed.backends.nvflare import operate

    def tell(line: str) -> None:
        console.print(line, markup=False)

    outcome = operate.conduct(
        kit, name, rounds=rounds, into=directory, patience=patience, tell=tell, more=_rounds(kit, name)
    )
    model = outcome.result["sha256"] or "at the sites"
    console.print(f"Complete: {outcome.result['rounds']} rounds, model {model}", markup=False)
    _across(outcome.folder)
    console.print(f"Result: {outcome.folder}", markup=False)


def _rounds(kit: Path, name: str) -> Callable[[], Iterator[str]]:
    """Each round that has begun since, where the server's kit lies beside the administrator's; elsewhere nothing."""
    from polypfed.report.watch import look, place_of

    def now() -> Iterator["Now"]:
        for path in kit.resolve().parent.glob("*/startup/fed_server.json"):
            with suppress(DataError):  # the job's own result says what became of it
                yield look(place_of(path.parents[1]).parent / name)

    said = max((max(seen.run.rounds, default=0) for seen in now()), default=0)

    def more() -> Iterator[str]:
        nonlocal said
        for seen in now():
            if seen.status in ("running", "complete"):
                yield from (f"round {number} of {seen.rounds}" for number in range(said + 1, seen.round + 1))
                said = max(said, seen.round)

    return more


def _across(folder: Path) -> None:
    """Print the cross-site matrix, if the run has one."""
    from polypfed.report.figures import matrix
    from polypfed.report.read import read_run

    if (found := matrix(read_run(folder))) is not None:
        body = [
            [m, *[f"{found.values[m, c]:.3f}" if (m, c) in found.values else "-" for c in found.columns]]
            for m in found.rows
        ]
        cells([found.row_label, *found.columns], body, found.title)


@app.command()
def status(kit: Kit, patience: Patience = 10.0) -> None:
    """Show the sites that are connected, and jobs that are not finished."""
    from polypfed.backends.nvflare import operate

    with operate.session(kit, patience) as opened:
        console.print_json(json.dumps(operate.status(opened)))


@app.command()
def stop(kit: Kit, patience: Patience = 10.0) -> None:
    """Shut down all sites, then the server."""
    from polypfed.backends.nvflare import operate

    operate.stop(kit, patience)
    console.print("The sites and the server are shutting down", markup=False)
