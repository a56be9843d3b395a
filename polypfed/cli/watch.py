"""`polypfed watch`: a run as it goes on, in the browser or the terminal."""

import os
import secrets
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from polypfed.cli.show import console
from polypfed.core.errors import ConfigError
from polypfed.report.scale import duration, number, size
from polypfed.report.watch import Now, SiteNow, WatchServer, look, place_of

_MOST_REFUSED, _LOOK = 5, 1.0  # lines; seconds
_TONES = {"running": "cyan", "complete": "green", "stopped": "yellow", "failed": "red", "waiting": "white"}


def watch(
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a run, or of a deployment's server.", show_default=False)
    ] = None,
    deployment: Annotated[
        Path | None, typer.Option(help="Folder of a deployment, whose server's run is meant.")
    ] = None,
    terminal: Annotated[bool, typer.Option("--terminal", "-t", help="Here, instead of in the browser.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Print the state once, here, and end.")] = False,
    host: Annotated[str, typer.Option(help="Address to serve; others' reach needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Its port; 0 takes a free one.")] = 8502,
    token_file: Annotated[
        Path | None, typer.Option(help="File of the token; without it one is made where --host needs one.")
    ] = None,
) -> None:
    """Show a run as it goes on: rounds, sites, curves, traffic, privacy, refused updates. It only reads."""
    if (run is None) == (deployment is None):
        raise typer.BadParameter("give the folder of a run, or --deployment")
    place = place_of(run or deployment or Path())
    if once:
        console.print(screen(look(place), time.time()))
    elif terminal:
        _follow(place)
    else:
        _serve(place, host, port, _token(token_file, host))


def _token(file: Path | None, host: str) -> str | None:
    if file is None:
        return None if host in ("127.0.0.1", "localhost", "::1") else secrets.token_urlsafe(24)
    try:
        if os.stat(file).st_mode & 0o077:
            raise ConfigError("can be read by others", where=file, remedy=f"chmod 600 {file}")
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read ({error})", where=file) from None


def _serve(place: Path, host: str, port: int, token: str | None) -> None:
    with WatchServer(place, host, port, token) as server:
        console.print(f"live view: {server.url}", markup=False)
        if not server.local:
            console.print("It is not encrypted: on a network that you do not trust, tunnel it through ssh instead.")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            console.print("stopped; the run goes on")


def _follow(place: Path) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            now = look(place)
            live.update(screen(now, time.time()), refresh=True)
            if now.status in ("complete", "failed", "stopped"):
                return
            time.sleep(_LOOK)


def screen(now: Now, clock: float) -> Group:
    """The state as the terminal shows it."""
    return Group(_head(now, clock), _sites(now, clock), *_refused(now))


def _head(now: Now, clock: float) -> Text:
    run = now.run
    of = f" of {now.rounds}" if now.rounds is not None else ""
    words = [f"round {now.round}{of}" + (f", {now.phase}" if now.phase else "")]
    words += [f"mAP50 {number(run.last('map50'))}"] if run.series("map50") else []
    words += [size(sum(sum(run.series(m).values()) for m in ("bytes_down", "bytes_up")))]
    budget = "" if now.budget is None else f" of {number(now.budget, 2)}"
    words += [f"epsilon {number(now.epsilon, 2)}{budget}"] if now.epsilon is not None else []
    words += [f"{duration(now.due - clock)} to go"] if now.due is not None else []
    words += [now.detail] if now.detail else []
    head = Text(f"{run.name}  ", style="bold")
    return head.append(now.status, style=_TONES[now.status]).append(f"  {' · '.join(words)}", style="not bold")


def _sites(now: Now, clock: float) -> Table:
    out = Table("site", "state", box=None, pad_edge=False)
    for head in ("heard", "kept", "loss", "mAP50", "refused"):
        out.add_column(head, justify="right")
    for site in now.sites:
        out.add_row(*map(escape, _row(site, clock)), style="red" if site.good is False else None)
    return out


def _row(site: SiteNow, clock: float) -> list[str]:
    heard = "-" if site.heard is None else f"{duration(max(0.0, clock - site.heard))} ago"
    kept = "-" if site.kept is None else f"{site.kept}" + ("" if site.images is None else f"/{site.images}")
    return [site.name, site.doing, heard, kept, number(site.loss), number(site.map50), str(site.refused)]


def _refused(now: Now) -> list[Text]:
    shown = now.refused[-_MOST_REFUSED:]
    return [
        Text(f"round {f.get('round')}  {f.get('client') or 'server'}: {f.get('reason')}: {f.get('detail')}", "red")
        for f in shown
    ]
