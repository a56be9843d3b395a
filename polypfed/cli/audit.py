"""`polypfed audit`: what the log of a run or a site says, whether it is whole, and a copy to hand on."""

from pathlib import Path
from typing import Annotated, Any

import typer

from polypfed.cli.codes import Code
from polypfed.cli.show import console
from polypfed.core import audit as logs
from polypfed.core.errors import ConfigError, PolypfedError

app = typer.Typer(help="The audit log of a run or a site.", no_args_is_help=True, rich_markup_mode=None)
Log = Annotated[Path, typer.Argument(help="Folder of a run or of a site's state, or the log itself.")]


def _path(place: Path) -> Path:
    path = place / "audit.jsonl" if place.is_dir() else place
    if not path.is_file():
        raise ConfigError("there is no audit log", where=path)
    return path


@app.command()
def show(
    log: Log,
    last: Annotated[int, typer.Option(min=0, help="Only so many lines, the last ones; 0 for all.")] = 20,
) -> None:
    """Show the log's lines; `verify` says whether they can be believed."""
    found = logs.entries(_path(log))
    for entry in found[-last:] if last else found:
        console.print("  ".join(_row(entry)), markup=False)
    console.print(f"{len(found)} lines")


@app.command()
def verify(
    log: Log,
    against: Annotated[
        list[Path] | None, typer.Option(help="A site's log, which has noted the server's heads.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run, whose checkpoint knows the log's head.")] = None,
    roster: Annotated[Path | None, typer.Option(help="roster.json: the head must be signed.")] = None,
    name: Annotated[str, typer.Option(help="Whose log it is, in the roster.")] = "",
) -> None:
    """Check every line, the head, and heads that others keep. Exit codes: 0 whole, 1 damaged, 4 cannot be checked."""
    try:
        path = _path(log)
        verifier = _verifier(roster, name) if roster is not None else None
        pins = [pin for other in against or [] for pin in logs.heads_in(_path(other))]
        folder = run or (log if log.is_dir() and (log / "checkpoint").is_dir() else None)
        pins += _pinned(folder) if folder is not None else []
    except PolypfedError as error:
        typer.echo(f"polypfed: the log cannot be checked: {error}", err=True)
        raise typer.Exit(Code.UNCHECKED) from None
    found = logs.verify(path, pins, verifier)
    if not found.good:
        console.print(f"{path}: line {found.line}: {found.problem}", markup=False)
        raise typer.Exit(Code.ERROR)
    signed = "signed" if found.signed else "the signature was not checked"
    console.print(f"{path}: {found.head.count} lines, whole; {signed}; {len(pins)} heads from elsewhere", markup=False)
    if found.unsealed:
        console.print(f"{found.unsealed} lines lie behind the last head: of a run at work, or one that was killed")
    if anew := [e for e in logs.entries(path) if e["event"] == "anew"]:
        console.print(f"the log began anew {len(anew)} times: lines before that are lost")


@app.command()
def export(
    log: Log,
    to: Annotated[Path, typer.Option(help="The file to write: .html or .csv.")],
) -> None:
    """Write the log as a page or a table that can be read without this program."""
    from polypfed.report.audit import as_csv, as_html

    path = _path(log)
    writers = {".html": as_html, ".csv": as_csv}
    if to.suffix not in writers:
        raise ConfigError(f"{to.suffix!r} is not .html or .csv", where=to)
    to.write_text(writers[to.suffix](logs.entries(path), logs.verify(path)), encoding="utf-8")
    console.print(f"Written: {to}", markup=False)


def _row(entry: dict[str, Any]) -> list[str]:
    facts = ", ".join(f"{key} {value}" for key, value in sorted(entry["facts"].items()))
    return [entry["utc"][:19], f"round {entry['round']}", entry["actor"], entry["event"], entry["subject"][:12], facts]


def _pinned(run: Path) -> list[logs.Head]:
    from polypfed.core import checkpoint

    kept = checkpoint.load(run / "checkpoint").audit
    return [logs.Head(**kept)] if kept else []


def _verifier(roster: Path, name: str) -> Any:
    from polypfed.privacy.keyring import read_roster

    found = read_roster(roster)
    return found.server.verifier if name in ("", found.server.name) else found[name].verifier
