"""`polypfed policy`: what this site allows, which plans wait for its owner, and their approval."""

import json
from pathlib import Path
from typing import Annotated

import typer

from polypfed.cli.show import console
from polypfed.core.errors import ConfigError

app = typer.Typer(help="A site's own policy.", no_args_is_help=True, rich_markup_mode=None)
File = Annotated[Path, typer.Argument(help="The site's site.toml, or polypfed.toml of its NVFlare kit.")]


@app.command()
def show(file: File) -> None:
    """Show the policy, the plans that are approved, and those that wait, with all they ask for."""
    charter, plans = _open(file)
    for key, value in vars(charter.policy).items():
        console.print(f"{key} = {json.dumps(value)}" if value is not None else f"{key}: open", markup=False)
    for kind, found in (("approved", plans.approved()), ("waiting", plans.waiting())):
        for name, plan in found.items():
            console.print(f"{kind}: {name}", markup=False)
            console.print(json.dumps(plan, indent=1, sort_keys=True), markup=False)


@app.command()
def approve(
    file: File,
    plan: Annotated[str, typer.Argument(help="The plan's hash, sha256:...; empty with --study.")] = "",
    study: Annotated[Path | None, typer.Option(help="A study's TOML file: approve what it asks for.")] = None,
    clip: Annotated[bool, typer.Option(help="As `clip` of the server's settings.")] = True,
) -> None:
    """Let a federation do here what a plan says. Read it first: `polypfed policy show`."""
    _, plans = _open(file)
    if (study is None) is (not plan):
        raise ConfigError("give a plan's hash, or --study", where="polypfed policy approve")
    console.print(f"approved: {plans.approve(plan if study is None else _of(study, clip))}", markup=False)


@app.command()
def revoke(file: File, plan: Annotated[str, typer.Argument(help="The plan's hash.")]) -> None:
    """Take an approval back; the next task of that plan is refused."""
    _open(file)[1].revoke(plan)
    console.print(f"no longer approved: {plan}", markup=False)


def approve_study(file: Path) -> None:
    """Approve what the study asks for that `site.toml` names.

    Raises:
        ConfigError: it names none.
    """
    from polypfed.backends.site_file import SiteFile

    site, (_, plans) = SiteFile.load(file), _open(file)
    study = site.settings.get("study")
    if not isinstance(study, str):
        remedy = "Approve the server's plan by its hash: polypfed policy show"
        raise ConfigError("[settings] names no study to approve", where=file, remedy=remedy)
    console.print(f"approved: {plans.approve(_of(file.absolute().parent / study, clip=True))}", markup=False)


def _open(file: Path):  # type: ignore[no-untyped-def]  # both types are of rooms that are imported late
    from polypfed.backends.site_file import SiteFile
    from polypfed.clients.plans import Plans

    charter = SiteFile.load(file).charter
    if charter.plans is None:
        raise ConfigError("keeps no plans", where=file)
    return charter, Plans(charter.plans)


def _of(study: Path, clip: bool):  # type: ignore[no-untyped-def]  # as above
    from polypfed import remote
    from polypfed.clients.plan import plan_of
    from polypfed.federation.plan import task_config

    return plan_of(task_config(remote.planned(study, clip=clip)))
