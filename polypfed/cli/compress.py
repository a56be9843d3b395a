"""`polypfed compress`: narrower models for slow boards, with what they cost and gain."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from polypfed.cli.show import console


def compress(
    model: Annotated[Path, typer.Argument(help="Run folder or .safetensors of a run.")],
    train: Annotated[list[Path], typer.Option(help="YOLO folder to fine-tune on; may be given several times.")],
    val: Annotated[Path, typer.Option(help="YOLO folder that judges.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the narrower models.")],
    width: Annotated[list[float] | None, typer.Option(help="Share of the channels that stay; several at will.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of fine-tuning.")] = 10,
    image_size: Annotated[int, typer.Option(help="Side of the square the detector sees.")] = 192,
) -> None:
    """Cut whole channels off a model, fine-tune what is left, and compare: mAP50 and milliseconds, one thread."""
    from polypfed.clients.compressing import compress as run
    from polypfed.core.rundir import load_model
    from polypfed.detect.export import model_file

    spec, x = load_model(model_file(model))
    rows = run(
        spec, x, train, val, width or [0.75, 0.5], out, epochs=epochs, imgsz=image_size,
        tell=lambda line: console.print(line, markup=False),
    )  # fmt: skip
    table = Table("model", "million", "MB", "mAP50, cut", "tuned", "fp32 ms", "int8 ms", box=None)
    for row in rows:
        times = [f"{row.ms[p]:.2f}" if p in row.ms else "-" for p in ("fp32", "int8")]
        size = [f"{row.parameters / 1e6:.2f}", f"{4 * row.parameters / 1e6:.1f}"]
        table.add_row(row.arch, *size, "" if row.path is None else f"{row.cut:.3f}", f"{row.tuned:.3f}", *times)
    console.print(table)
    console.print(f"The narrower models are in {out}", markup=False)
