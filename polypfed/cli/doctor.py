"""`polypfed doctor`: what is installed, what would fail, and how to mend it."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from polypfed.cli.codes import Code
from polypfed.cli.show import console
from polypfed.doctor import Asked, Finding, examine


class Role(StrEnum):
    """Who asks."""

    researcher = "researcher"
    site = "site"
    server = "server"
    device = "device"


def doctor(
    role: Annotated[Role, typer.Argument(help="Who asks; each role needs other things.")] = Role.researcher,
    file: Annotated[
        Path | None,
        typer.Argument(help="A study's TOML file, site.toml, server/, or an NVFlare kit.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    directory: Annotated[Path, typer.Option("--directory", "-d", help="Of runs, or of samples.")] = Path("runs"),
    delegate: Annotated[str, typer.Option(help="Of a device: delegate library, LIB or LIB,key:value.")] = "",
    need: Annotated[list[str] | None, typer.Option(help="An extra that must be there; may be repeated.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Without building a model or decoding images.")] = False,
) -> None:
    """Say what would fail on this machine and how to mend it; exit code 1 if something would."""
    with console.status("looking around"):
        found = list(examine(role.value, Asked(file, directory, delegate, tuple(need or ()), quick)))
    if as_json:
        print(json.dumps([asdict(f) for f in found], indent=1))
    else:
        _print(found)
    raise typer.Exit(Code.ERROR if any(f.state == "error" for f in found) else Code.DONE)


def _print(found: list[Finding]) -> None:
    out = Table("", "what", "found", "remedy", box=None)
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "error": "[red]error[/]"}
    for finding in found:
        out.add_row(marks[finding.state], *map(escape, (finding.what, finding.detail, finding.remedy)))
    console.print(out)
    errors = sum(f.state == "error" for f in found)
    console.print(f"{errors} errors" if errors else "Nothing here would fail.")
