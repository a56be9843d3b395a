"""`polypfed export`: a global model as a file for devices, or a template that devices fill in themselves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from polypfed.cli.show import console
from polypfed.core.errors import ConfigError, DataError


def export(
    model: Annotated[str, typer.Argument(help="Run folder, .safetensors of a run, or an architecture: yolov5n.")],
    format: Annotated[str, typer.Option(help="tflite or onnx.")] = "tflite",
    precision: Annotated[str, typer.Option(help="fp32, fp16, dynamic or int8.")] = "fp32",
    image_size: Annotated[int, typer.Option(help="Side of the square the detector sees; a multiple of 32.")] = 320,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write.")] = None,
    frames: Annotated[Path | None, typer.Option(help="Images for int8: 32 calibrate, the others judge.")] = None,
    threshold: Annotated[float, typer.Option(help="The selector's: int8 must decide like fp32 there.")] = 0.7,
    npu: Annotated[bool, typer.Option(help="Clear the resize flag that some NPU drivers refuse.")] = False,
    templates: Annotated[Path | None, typer.Option(help="Folder of templates; by default in the cache.")] = None,
    install_converter: Annotated[bool, typer.Option(help="Make the converter's environment first (1 GB).")] = False,
    wheels: Annotated[Path | None, typer.Option(help="Install the converter from this folder, offline.")] = None,
) -> None:
    """Write a model in a form for devices. Given an architecture, make its template, which holds no weights."""
    from polypfed.detect.export import Converter, export_model, find_template

    converter = Converter()
    if install_converter and not converter.ready:
        with console.status("this takes some minutes; pip unpacks 1 GB"):
            converter.install(wheels, lambda line: console.print(line, markup=False))
    if _is_architecture(model):
        with console.status("converting; this takes a minute"):
            template = find_template(model, image_size, templates, converter)
        console.print(f"{template.where}: {', '.join(template.precisions)}", markup=False)
        return
    if precision == "int8" and format == "tflite":
        _gated(Path(model), out, image_size, frames, threshold, npu, templates, converter)
        return
    suffix = "onnx" if format == "onnx" else "tflite"
    target = out or Path(f"{Path(model).stem}-{image_size}-{precision}.{suffix}")
    about = export_model(
        Path(model), target, format, precision, image_size, npu=npu, templates=templates, converter=converter  # type: ignore[arg-type]  # checked there
    )  # fmt: skip
    console.print(f"{target}: {about['arch']}, {about['precision']}, {about['bytes'] / 1e6:.1f} MB", markup=False)


def _is_architecture(name: str) -> bool:
    from polypfed.detect.widths import parts

    try:
        parts(name)
    except ConfigError:
        return False
    return not Path(name).exists()


def _gated(
    model: Path,
    out: Path | None,
    image_size: int,
    frames: Path | None,
    threshold: float,
    npu: bool,
    templates: Path | None,
    converter: Any,
) -> None:
    """int8, or what decides like fp32 where int8 does not."""
    from polypfed.core.files import write_atomic
    from polypfed.core.rundir import load_model
    from polypfed.detect.adapt import adapt
    from polypfed.detect.export import architecture, find_template, model_file

    if frames is None:
        raise ConfigError("int8 needs images to calibrate on", where="--frames", remedy="Give a folder of 100 or more")
    spec, vector = load_model(model_file(model))
    template = find_template(architecture(spec), image_size, templates, converter)
    images = list(_images(frames))
    with console.status(f"comparing with fp32 on {len(images)} images"):
        done = adapt(template, spec.views(vector), images, threshold=threshold, npu=npu)
    target = out or Path(f"{model.stem}-{image_size}-{done.precision}.tflite")
    write_atomic(target, done.model)
    console.print(f"{target}: {done}, {len(done.model) / 1e6:.1f} MB", markup=False)
    if done.agreement:
        seen = done.agreement
        console.print(
            f"{seen.frames} images: decisions at {threshold} agree on {seen.agreement:.1%}, "
            f"confidences differ by up to {seen.largest:.3f}",
            markup=False,
        )


def _images(folder: Path, most: int = 400) -> Iterator[Any]:
    from polypfed.data import open_image
    from polypfed.data.images import SUFFIXES

    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)[:most]
    if len(found) < 24:
        raise DataError(f"{len(found)} images are too few to choose a precision by", where=folder)
    for path in found:
        yield open_image(path)
