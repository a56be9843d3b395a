"""`polypfed release`: models for devices, from a draft that people sign to a slot on a board."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from polypfed.cli.show import console
from polypfed.core.errors import ConfigError
from polypfed.core.extras import require

app = typer.Typer(help="Signed models for devices.", no_args_is_help=True, rich_markup_mode=None)
Repo = Annotated[Path, typer.Argument(help="Folder of the repository.")]
Box = Annotated[Path, typer.Argument(help="The device's folder.")]
Own = Annotated[Path, typer.Option("--key", help="The repository's own key.")]
Groups = Annotated[list[str] | None, typer.Option("--group", help="Of the fleet; once per group. None given: all.")]


@app.command()
def init(
    repository: Repo,
    keys: Annotated[Path, typer.Option(help="Folder for the new keys; hand them out, and keep them off this machine.")],
    person: Annotated[list[str], typer.Option(help="Who may sign releases; once per person.")],
    threshold: Annotated[int, typer.Option(min=1, help="Signatures of people that a release needs.")] = 1,
) -> None:
    """Begin a repository: a key for each person, one for itself, and the root that devices trust."""
    from polypfed.core.settings import site_names

    _tuf()
    from polypfed.release.keys import make_key
    from polypfed.release.repository import Repository

    site_names(person)
    people = {name: make_key(keys / f"{name}.pem") for name in person}
    root = Repository(repository).init(people, make_key(keys / "repository.pem"), threshold)
    console.print(f"Keys: {keys}. Devices are set up with {root}", markup=False)


@app.command()
def create(
    repository: Repo,
    model: Annotated[Path, typer.Argument(help="model.safetensors of a run, or the run's folder.")],
    template: Annotated[Path, typer.Option(help="Of `polypfed export`.")],
    version: Annotated[int, typer.Option(min=1, help="Above all versions before.")],
    card: Annotated[Path | None, typer.Option(help="A text file: purpose, data, limits.")] = None,
    recall: Annotated[float, typer.Option(help="Least share of a device's reference boxes that must be found.")] = 0.5,
    seconds: Annotated[float, typer.Option(help="Most for one reference image.")] = 2.0,
    group: Groups = None,
) -> None:
    """Put a release into the draft. Nothing is published before people have signed it."""
    _tuf()
    from polypfed.core.rundir import load_model
    from polypfed.release.bundle import Card, write_bundle
    from polypfed.release.repository import EVERYBODY, Repository

    path = model / "best.safetensors" if model.is_dir() else model
    if model.is_dir() and not path.exists():
        path = model / "model.safetensors"
    spec, vector = load_model(path)
    text = {} if card is None else {"text": card.read_text(encoding="utf-8")}
    about: dict[str, Any] = {"recall": recall, "seconds": seconds, **text, **_provenance(path.parent)}
    made = write_bundle(Card(version, **about), spec, vector, template.read_bytes())
    name = Repository(repository).create(made, group or [EVERYBODY])
    console.print(f"In the draft: {name}, {len(made)} bytes. Sign it: polypfed release sign", markup=False)


def _provenance(run: Path) -> dict[str, Any]:
    """Run, round and scores, where the model lies in a run's folder."""
    from polypfed.core import checkpoint

    if not (run / "checkpoint").is_dir():
        return {}
    last = checkpoint.load(run / "checkpoint")
    head = str(last.audit.get("hash", ""))
    metrics = {} if last.best_value is None else {"best": float(last.best_value)}
    return {
        "provenance": {"run": last.run, "round": str(last.best_round or last.round), "audit": head},
        "metrics": metrics,
    }


@app.command()
def stage(
    repository: Repo,
    version: Annotated[int, typer.Argument(min=1, help="A published release.")],
    group: Groups = None,
) -> None:
    """Draft the next stage of a roll-out: for whom a release is from now on. It needs signatures too."""
    _tuf()
    from polypfed.release.repository import EVERYBODY, Repository

    Repository(repository).stage(version, group or [EVERYBODY])
    console.print("In the draft. Sign it: polypfed release sign")


@app.command()
def sign(repository: Repo, key: Annotated[Path, typer.Option(help="A person's key.")]) -> None:
    """Sign the draft, as a person."""
    _tuf()
    from polypfed.release.keys import open_key
    from polypfed.release.repository import Repository

    missing = Repository(repository).sign(open_key(key))
    console.print(f"signed; {missing} more signatures are needed" if missing else "signed; it can be published")


@app.command()
def publish(repository: Repo, key: Own) -> None:
    """Publish the signed draft. Without one, say anew what is newest, so that devices go on believing it."""
    _tuf()
    from polypfed.release.keys import open_key
    from polypfed.release.repository import Repository

    found = Repository(repository)
    number = found.publish(open_key(key))
    console.print(f"published, state {number}; devices read {found.folder / 'public'}", markup=False)


@app.command()
def device(
    folder: Box,
    root: Annotated[Path, typer.Argument(help="1.root.json of the repository, by a way you trust.")],
    group: Annotated[str, typer.Option(help="Of the fleet.")] = "all",
) -> None:
    """Set up a device's folder."""
    _tuf()
    from polypfed.release.install import prepare

    prepare(folder, root.read_bytes(), group)
    console.print(f"{folder} is set up", markup=False)


@app.command()
def install(
    folder: Box,
    source: Annotated[Path, typer.Argument(help="A copy of the repository's folder `public`.")],
    reference: Annotated[Path, typer.Option(help="This device's reference images, best with YOLO labels.")],
    patience: Annotated[float, typer.Option(help="Seconds for the trial.")] = 120.0,
) -> None:
    """Install the newest release for this device, if it is good and works here; else nothing changes."""
    _tuf()
    from polypfed.release.install import install as run
    from polypfed.release.smoke import Reference

    with console.status("trying it on the reference images"):
        done = run(folder, source, Reference(reference, patience))
    console.print(
        "nothing newer" if done is None else f"version {done.card.version} boots next, on trial", markup=False
    )


@app.command()
def boot(
    folder: Box,
    to: Annotated[Path, typer.Option(help="Folder that `polypfed device --models` watches.")],
    confirm: Annotated[bool, typer.Option("--confirm", help="It does its work: end the trial.")] = False,
) -> None:
    """Hand the release that should run to `polypfed device`; one that was never confirmed falls back after 3 starts."""
    from polypfed.core.rundir import save_model
    from polypfed.release.slots import Slots

    slots = Slots(folder)
    if confirm:
        slots.confirm()
        console.print("confirmed")
        return
    found = slots.boot()
    save_model(to / f"release-{found.card.version:06d}.safetensors", found.spec, found.model)
    console.print(f"version {found.card.version}", markup=False)


@app.command()
def status(folder: Annotated[Path, typer.Argument(help="Of a repository or a device.")]) -> None:
    """Show the releases of a repository, or the slots of a device."""
    if (folder / "public").is_dir():
        _tuf()
        from polypfed.release.repository import Repository

        console.print_json(json.dumps(Repository(folder).releases()))
        return
    from dataclasses import asdict

    from polypfed.release.slots import Slots

    if not (folder / "state").exists():
        raise ConfigError("is neither a repository nor a device", where=folder)
    console.print_json(json.dumps(asdict(Slots(folder).state)))


def _tuf() -> None:
    require("tuf", extra="release")
