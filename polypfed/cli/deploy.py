"""`polypfed deploy`: write everything that a deployment needs, and run it."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from polypfed.cli.show import console

app = typer.Typer(help="Deployments on real machines.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def flower(
    directory: Annotated[Path, typer.Argument(help="Folder to make; must not exist.")],
    study: Annotated[Path | None, typer.Option(help="The study's TOML file; server and sites get a copy.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="A site's name; once per site.")] = None,
    data: Annotated[list[Path] | None, typer.Option(help="Each site's folder of train/ and val/, in order.")] = None,
    join: Annotated[
        list[Path] | None, typer.Option(help="NAME.join.json of a site that ran `polypfed init site`; once per site.")
    ] = None,
    host: Annotated[str, typer.Option(help="Name or address of the server, as sites reach it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port, the only one to open.")] = 8443,
    client: Annotated[str | None, typer.Option(help="MODULE:FUNCTION of your own clients, instead of a study.")] = None,
    federation: Annotated[str | None, typer.Option(help="MODULE:FUNCTION of your own federation, with it.")] = None,
) -> None:
    """Write a deployment on Flower: keys, certificates, scripts, units, the app for `flwr run`, and READMEs."""
    from polypfed.backends.flower import deploy
    from polypfed.backends.flower.join import Join

    names, joined = site or [], [Join.read(path) for path in join or []]
    folders = [str(path.absolute()) for path in data or []]
    if folders and len(folders) != len(names):
        raise typer.BadParameter("give one --data for each --site, in the same order")
    if (client is None) != (federation is None) or (client and study):
        raise typer.BadParameter("give --client and --federation together, and no --study")
    settings = {n: {"data": p} for n, p in zip(names, folders or ["data"] * len(names), strict=True)}
    plan = deploy.Plan(names, host, port, study, settings=settings, joined=joined)
    if client and federation:
        plan = replace(plan, client=client, federation=federation, settings=settings if folders else None)
    made = deploy.write(directory, plan)
    for each in joined:
        console.print(f"{each.name}: compare by telephone, SHA-256 {each.digest}", markup=False)
    console.print(f"Written: {made}. Begin with {made / 'README.md'}", markup=False)


@app.command()
def run(
    server: Annotated[Path, typer.Argument(help="The deployment's folder server/.")] = Path(),
    patience: Annotated[float, typer.Option(help="Seconds to wait for the SuperLink.")] = 60.0,
) -> None:
    """Register the sites' keys and run the federation; after a break, the same command resumes it."""
    from polypfed.backends.flower import deploy

    logging.getLogger("polypfed").setLevel(logging.INFO)
    outcome = deploy.conduct(server, patience)
    model = outcome["sha256"] or "at the sites, in their folders `state`"
    console.print(f"Complete: {outcome['rounds']} rounds, model {model}", markup=False)
