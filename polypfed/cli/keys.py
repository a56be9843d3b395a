"""`polypfed keys`: identities, rosters and job keys, for those who run sites and servers."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from polypfed.cli.show import console
from polypfed.core.errors import ConfigError, MessageError
from polypfed.core.files import write_atomic
from polypfed.core.messages import strict_json

app = typer.Typer(help="Keys for encrypted and masked runs. Private keys never leave the folder they are made in.")

Folder = Annotated[Path, typer.Argument(help="A `keys` folder: SITE/keys at a site, RUN/keys at the server.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="The site's name, or the server's.")],
    folder: Annotated[Path, typer.Option("--to", help="The `keys` folder to make.")] = Path("keys"),
) -> None:
    """Make an identity. Send the file member.json to whoever makes the roster; keep identity.key where it is."""
    from polypfed.privacy.keyring import IDENTITY
    from polypfed.privacy.roster import Identity

    path = folder / IDENTITY
    if path.exists():
        raise ConfigError("holds an identity already", where=folder, remedy="Use another folder, or delete it first")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    identity = Identity.create(name)
    identity.save(path)
    public = {"name": name, "signing": identity.public.signing.hex(), "transport": identity.public.transport.hex()}
    write_atomic(folder / "member.json", json.dumps(public, indent=1).encode() + b"\n")
    console.print(f"{path}: private, readable by you only")
    console.print(f"{folder / 'member.json'}: public; read its fingerprint to the others by telephone:")
    console.print(f"  {identity.public.fingerprint}", markup=False)


@app.command()
def roster(
    members: Annotated[list[Path], typer.Argument(help="member.json of every site.")],
    server: Annotated[Path, typer.Option(help="member.json of the server.")],
    to: Annotated[Path, typer.Option(help="The roster to write; every site and the server needs a copy.")],
) -> None:
    """Put public keys together. Every site compares the fingerprints before it takes the roster."""
    from polypfed.privacy.keyring import write_roster
    from polypfed.privacy.roster import Roster

    found = Roster.from_json({"members": [_json(path) for path in members], "server": _json(server)})
    write_roster(to, found)
    _show_roster(found)


@app.command()
def wrap(
    run: Annotated[Path, typer.Argument(help="Folder of a run on the server.")],
    keys: Annotated[Path, typer.Option("--keys", help="This site's `keys` folder.")],
) -> None:
    """Make the job key of a run at this site and put it, wrapped for each member, into the run's folder.

    Without this the run's first round does it. Use it, or rotate, while the run is stopped.
    """
    _wrap(run, keys, again=False)


@app.command()
def rotate(
    run: Annotated[Path, typer.Argument(help="Folder of a run on the server.")],
    keys: Annotated[Path, typer.Option("--keys", help="This site's `keys` folder.")],
) -> None:
    """Make the next job key of a run: after a member has left, was revoked, or a key may have leaked."""
    _wrap(run, keys, again=True)


def _wrap(run: Path, keys: Path, *, again: bool) -> None:
    from polypfed.federation.sums import SumLog
    from polypfed.privacy import keys as jobs
    from polypfed.privacy.keyring import open_keys

    identity, found = open_keys(keys)
    about, log = _json(run / "run.json"), SumLog(run / "sums")
    params, epochs = _params(run, about, len(found.names)), log.keys()
    if bool(epochs) is not again:
        problem, remedy = ("has a job key", "Use rotate") if epochs else ("has no job key yet", "Use wrap")
        raise ConfigError(problem, where=run, remedy=remedy)
    key = jobs.JobKey.create(str(about["run"]), params, found, max(epochs, default=0) + 1)
    described = {"id": key.id.hex(), "roster": found.digest.hex(), "leader": identity.name}
    log.keep_keys(key.epoch, described, jobs.wrap(key, found, identity))
    console.print(f"job key of epoch {key.epoch} for {len(found.names)} members; fingerprint {key.fingerprint}")


def _params(run: Path, about: dict[str, Any], sites: int) -> Any:
    """Of the run's ciphertexts, by the stages it began with."""
    from polypfed.clients.outbox import build
    from polypfed.privacy.pipeline import Pipeline

    stages = build(about.get("settings", {}).get("stages", []))
    layout = Pipeline(stages, sites).layout
    if layout is None or layout[1] is None:
        raise ConfigError("is not encrypted, so it has no job key", where=run)
    return layout[1]


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="identity.key, member.json, roster.json, or a job key.")],
) -> None:
    """Show what may be shown of a key file: names, fingerprints, epochs. Never a private key."""
    from polypfed.core.files import read_framed
    from polypfed.privacy import keys as jobs
    from polypfed.privacy.roster import Identity, Roster

    if path.suffix == ".json":
        value = _json(path)
        _show_roster(Roster.from_json(value)) if "members" in value else console.print(_member(value), markup=False)
        return
    header, _ = read_framed(path)
    if "pieces" in header or "lengths" in header:
        shown = dict(header["about"])
    elif str(header.get("kind", "")).startswith("polypfed identity"):
        public = Identity.load(path).public
        shown = {"name": public.name, "fingerprint": public.fingerprint}
    else:
        shown = jobs.inspect(path)
    for key, value in shown.items():
        console.print(f"{key}: {value}", markup=False)


def _show_roster(found: Any) -> None:
    table = Table("number", "name", "fingerprint")
    for number, member in enumerate(found.members):
        table.add_row(str(number), member.name, member.fingerprint)
    table.add_row("", f"{found.server.name} (server)", found.server.fingerprint)
    console.print(table)


def _member(value: dict[str, Any]) -> str:
    from polypfed.privacy.roster import Member

    try:
        member = Member(str(value["name"]), bytes.fromhex(value["signing"]), bytes.fromhex(value["transport"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"is no public key ({error!r})", where="member.json") from None
    return f"{member.name}: {member.fingerprint}"


def _json(path: Path) -> dict[str, Any]:
    try:
        return strict_json(path.read_bytes())
    except (OSError, MessageError) as error:
        raise ConfigError(f"cannot be read ({error})", where=path) from None
