"""`polypfed init`: commented starters for each role. Nothing is overwritten."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from polypfed.backends.texts import POLICY, unit
from polypfed.cli.show import console
from polypfed.core.errors import ConfigError
from polypfed.core.extras import require
from polypfed.core.files import write_atomic
from polypfed.core.settings import site_names

app = typer.Typer(
    help="Write a commented starter. `polypfed doctor ROLE` checks what you make of it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Folder = Annotated[Path, typer.Argument(help="Where to write; made if it is missing.")]


@app.command()
def researcher(folder: Folder = Path()) -> None:
    """A study with every setting explained; it runs as it stands, on synthetic frames."""
    _write(folder, {"study.toml": starter("study.toml")})
    console.print(f"Next: polypfed doctor researcher {folder / 'study.toml'}", markup=False)


@app.command()
def site(
    folder: Folder = Path(),
    name: Annotated[str, typer.Option(help="Of this site, as the server's owner calls it.")] = "site-1",
    server: Annotated[str, typer.Option(help="HOST:PORT of the server.")] = "localhost:8443",
) -> None:
    """A site of a Flower deployment: its settings and a key pair of its own, whose private half never leaves it."""
    site_names([name])
    require("flwr", extra="flower")
    from polypfed.backends.flower.certificates import site_keys
    from polypfed.backends.flower.join import Join
    from polypfed.backends.site_file import KEYS
    from polypfed.privacy.keyring import IDENTITY
    from polypfed.privacy.roster import Identity

    private, public = site_keys()
    identity = Identity.create(name)
    join = Join(identity.public, public)
    text = starter("site.toml").format(name=name, server=server, digest=join.digest) + POLICY
    _free(folder, [f"{KEYS}/{IDENTITY}"])
    told = {"site.toml": text, "site.pub": public.decode(), f"{name}.join.json": join.data.decode()}
    _write(folder, told, {"site.key": private})
    (folder / KEYS).mkdir(mode=0o700, exist_ok=True)
    identity.save(folder / KEYS / IDENTITY)
    console.print(f"Send {folder / name}.join.json to the server's owner. SHA-256: {join.digest}", markup=False)
    console.print(f"Next: polypfed doctor site {folder / 'site.toml'}", markup=False)


@app.command()
def server(
    folder: Annotated[Path, typer.Argument(help="Folder to make; must not exist.")] = Path("federation"),
    site: Annotated[list[str] | None, typer.Option(help="A site's name; once per site.")] = None,
    study: Annotated[Path | None, typer.Option(help="A study's TOML file; without it the starter.")] = None,
    host: Annotated[str, typer.Option(help="Name or address of the server, as sites reach it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port, the only one to open.")] = 8443,
) -> None:
    """A server and its sites on Flower: an authority, certificates, keys, settings, scripts, units and READMEs."""
    require("flwr", extra="flower")
    from polypfed.backends.flower import deploy

    names = site or ["site-1", "site-2"]
    deploy.write(folder, deploy.Plan(names, host, port, study, settings={n: {"data": "data"} for n in names}))
    if study is None:
        for place in (folder / "server", *(folder / "sites" / n for n in names)):
            _write(place, {"study.toml": starter("study.toml")})
    console.print(f"Next: polypfed doctor server {folder / 'server'}, and {folder / 'README.md'}", markup=False)


@app.command()
def device(folder: Folder = Path()) -> None:
    """A board: the script that starts its service, and a systemd unit."""
    _write(
        folder,
        {"start.sh": starter("start.sh"), "polypfed-device.service": unit("polypfed on this device", "always")},
    )
    (folder / "start.sh").chmod(0o755)
    console.print(f"Next: look at {folder / 'start.sh'}, and polypfed doctor device", markup=False)


def starter(name: str) -> str:
    """The text of a starter."""
    return files("polypfed.cli.starters").joinpath(name).read_text(encoding="utf-8")


def _free(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if (folder / name).exists():
            raise ConfigError("exists already", where=folder / name, remedy="Choose another folder, or remove it")


def _write(folder: Path, texts: dict[str, str], secrets: dict[str, bytes] | None = None) -> None:
    """Write all or nothing.

    Raises:
        ConfigError: one of the files exists, or the folder cannot be written.
    """
    secrets = secrets or {}
    _free(folder, [*texts, *secrets])
    try:
        for name, data in secrets.items():
            write_atomic(folder / name, data, mode=0o600)
        for name, text in texts.items():
            write_atomic(folder / name, text.encode())
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror})", where=folder) from None
    for name in (*texts, *secrets):
        console.print(f"Written: {folder / name}", markup=False)
