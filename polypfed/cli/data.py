"""`polypfed data`: import public sets, check, divide among sites, make synthetic ones."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from rich.table import Table

from polypfed.cli.show import console, progress
from polypfed.core.errors import ConfigError

app = typer.Typer(help="Import, check, divide and make data sets.", no_args_is_help=True, rich_markup_mode=None)

Mode = Literal["by_centre", "iid", "quantity", "dirichlet"]
Source = Annotated[Path, typer.Argument(help="Folder of the data set, in its own layout.")]
Target = Annotated[Path, typer.Argument(help="Folder to make; must not exist.")]


@app.command("import")
def import_(
    source: Source,
    target: Target,
    dataset: Annotated[str, typer.Option(help="Its name; by default read off the folders.")] = "auto",
    lenient: Annotated[bool, typer.Option("--lenient", help="List and skip what cannot be used.")] = False,
    skip_unannotated: Annotated[
        bool, typer.Option("--skip-unannotated", help="Leave out images that the annotation file does not mention.")
    ] = False,
) -> None:
    """Turn a public polyp set into a YOLO folder: boxes from masks, metadata stripped, groups kept."""
    from polypfed.data import import_dataset

    with progress("importing") as tick:
        summary = import_dataset(
            dataset, source, target, strict=not lenient, skip_unannotated=skip_unannotated, progress=tick
        )
    console.print(str(summary), markup=False)
    for name, reason in summary.skipped:
        console.print(f"  skipped {name}: {reason}", markup=False)
    for warning in summary.warnings:
        console.print(f"  warning: {warning}", markup=False)


@app.command()
def check(folder: Annotated[Path, typer.Argument(help="YOLO folder, site or partition.")]) -> None:
    """Decode every image, read every label, and list all problems; exit code 1 if there is an error."""
    from polypfed.data import check_dataset

    with progress("checking") as tick:
        found = check_dataset(folder, progress=tick)
    for finding in found.findings:
        console.print(str(finding), markup=False)
    console.print(f"{found.images} images, {found.boxes} boxes, {found.negatives} negatives", markup=False)
    console.print("No errors." if found.ok else "Errors: this folder cannot be used as it is.")
    raise typer.Exit(0 if found.ok else 1)


@app.command()
def partition(
    folders: Annotated[list[Path], typer.Argument(help="YOLO folders, one per centre.")],
    target: Annotated[Path, typer.Option("--to", help="Folder to make; must not exist.")],
    mode: Annotated[str, typer.Option(help="by_centre, iid, quantity or dirichlet.")] = "by_centre",
    sites: Annotated[int | None, typer.Option(help="Number of sites; not for by_centre.")] = None,
    val: Annotated[float, typer.Option(help="Share of each site's images for validation.")] = 0.25,
    alpha: Annotated[float, typer.Option(help="Of dirichlet and quantity: the smaller, the more sites differ.")] = 0.5,
    held_out: Annotated[list[str] | None, typer.Option(help="A centre that no site may see.")] = None,
    seed: Annotated[int, typer.Option(help="Of the division.")] = 0,
) -> None:
    """Divide YOLO folders among sites; a patient, exam or sequence is never split."""
    from polypfed.data import partition as divide
    from polypfed.data import read_yolo

    if mode not in get_args(Mode):
        raise ConfigError(f"{mode!r} is not a mode", where="--mode", remedy=f"Use one of {', '.join(get_args(Mode))}")
    samples = [s for f in folders for s in read_yolo(f, centre=f.name, source=f.name)]
    with progress("dividing") as tick:
        manifest = divide(samples, target, mode, sites, val, seed, alpha=alpha, held_out=held_out or (), progress=tick)
    _show(manifest.skew, manifest.digest)


@app.command()
def synth(
    target: Target,
    sites: Annotated[int, typer.Option(min=1, help="Hospitals.")] = 4,
    train: Annotated[int, typer.Option(min=1, help="Training images per site.")] = 100,
    val: Annotated[int, typer.Option(min=1, help="Validation images per site.")] = 40,
    size: Annotated[int, typer.Option(help="Image width in pixels.")] = 192,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
) -> None:
    """Make synthetic colonoscopy frames of several hospitals, each with its own look."""
    from polypfed.data.synth import synth as make

    with progress("drawing") as tick:
        manifest = make(target, sites, train, val, size, seed, tick)
    _show(manifest.skew, manifest.digest)


def _show(skew: Any, digest: str) -> None:
    out = Table("site", "images", "boxes", "negatives", "divergence")
    for name, row in skew["sites"].items():
        out.add_row(name, str(row["images"]), str(row["boxes"]), f"{row['negatives']:.0%}", f"{row['divergence']:.3f}")
    console.print(out)
    console.print(f"manifest {digest[:16]}, divergence over sites {skew['divergence']:.3f}", markup=False)
