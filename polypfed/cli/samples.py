"""`polypfed samples`: what a device kept, on its way to a clinician and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from polypfed.cli.show import console
from polypfed.core.errors import DataError

app = typer.Typer(help="The frames a device kept: show, label, forget.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="Folder of the sample store.")]
Key = Annotated[Path, typer.Option("--key", help="Its key file.")]


@contextmanager
def _opened(folder: Path, key: Path) -> Iterator[Any]:
    from polypfed.data.store import SampleStore, Vault

    if not (folder / "store.db").is_file():
        raise DataError("is no sample store", where=folder)
    with SampleStore(folder, Vault(key, create=False)) as store:
        yield store


@app.command()
def show(folder: Folder, key: Key) -> None:
    """How many frames there are, and the state of their labels."""
    with _opened(folder, key) as store:
        counts = store.counts()
    out = Table("seen", "kept", "MB", "no label", "exported", "labelled", "pseudo", box=None)
    cells = [counts["seen"], counts["kept"], f"{counts['bytes'] / 1e6:.1f}"]
    out.add_row(*map(str, [*cells, *(counts[k] for k in ("none", "exported", "human", "pseudo"))]))
    console.print(out)


@app.command("export")
def export(
    folder: Folder,
    key: Key,
    target: Annotated[Path, typer.Option("--to", help="Folder to make; its images are not encrypted.")],
    format: Annotated[str, typer.Option(help="coco, yolo or label-studio.")] = "label-studio",
    model: Annotated[Path | None, typer.Option(help="A .tflite whose boxes are given as a start.")] = None,
) -> None:
    """Frames without a person's label, for a labelling tool."""
    from polypfed.data.store import export_labels

    with _opened(folder, key) as store:
        guesses = {}
        if model is not None:
            from polypfed.detect.litert import LiteRTDetector

            detector = LiteRTDetector(model)
            records = store.records("none", "exported", "pseudo")
            guesses = {r.id: detector(store.image(r.id)).xyxy for r in records}
        count = export_labels(store, target, format, guesses=guesses)  # type: ignore[arg-type]  # checked there
    console.print(f"{target}: {count} frames; remove the folder once the answers are in", markup=False)


@app.command("import")
def import_(
    folder: Folder,
    key: Key,
    answers: Annotated[Path, typer.Option("--from", help="COCO or Label Studio file, or YOLO folder.")],
    by: Annotated[str, typer.Option(help="Who labelled, for the record.")],
    format: Annotated[str, typer.Option(help="coco, yolo or label-studio.")] = "label-studio",
    empty: Annotated[str, typer.Option(help="An image without boxes: skip or negative.")] = "skip",
) -> None:
    """A clinician's answers."""
    from polypfed.data.store import import_labels

    if empty not in ("skip", "negative"):
        raise DataError(f"{empty!r} is neither skip nor negative", where="--empty")
    with _opened(folder, key) as store:
        counts = import_labels(store, answers, format, by, empty)  # type: ignore[arg-type]  # checked above
    console.print(", ".join(f"{count} {name}" for name, count in counts.items()), markup=False)


@app.command()
def retain(folder: Folder, key: Key, days: Annotated[float, typer.Option(min=0, help="Older ones go.")]) -> None:
    """Forget what is older."""
    with _opened(folder, key) as store:
        console.print(f"{store.retain(days * 86400)} frames forgotten")


@app.command()
def wipe(folder: Folder, key: Key, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Destroy the key and remove everything."""
    if not yes:
        typer.confirm(f"Destroy the key {key} and all of {folder}?", abort=True)
    with _opened(folder, key) as store:
        store.wipe()
    console.print(f"{folder} is gone", markup=False)
