"""From a global model to a file a device runs: templates made once, weights filled in, or ONNX."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import ConfigError, LayoutError
from polypfed.core.files import write_atomic
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.rundir import load_model
from polypfed.detect.export.environment import Converter, ExportError, cache
from polypfed.detect.patch import patch
from polypfed.detect.quantize import quantize
from polypfed.detect.template import PRECISIONS, Precision, Template
from polypfed.detect.widths import for_devices, narrower

Format = Literal["tflite", "onnx"]
_WIDTHS = {16: "yolov5n", 32: "yolov5s", 48: "yolov5m", 64: "yolov5l", 80: "yolov5x"}
_FIRST, _DEEPEST, _BLOCK = "model.0.conv.weight", "model.9.cv2.conv.weight", "model.6.m."
_DEPTHS = {3: (16, 32), 6: (48,), 9: (64,), 12: (80,)}  # blocks of layer 6 -> widths of the sizes that have so many

__all__ = ["Converter", "ExportError", "architecture", "export_model", "find_template", "model_file"]


def model_file(path: Path) -> Path:
    """The safetensors of `path`: itself, or a run folder's best or last model.

    Raises:
        ConfigError: there is none.
    """
    for candidate in (path, path / "best.safetensors", path / "model.safetensors"):
        if candidate.is_file():
            return candidate
    raise ConfigError("holds no model", where=path, remedy="Name a run folder or a .safetensors file of a run")


def architecture(spec: ModelSpec) -> str:
    """The YOLOv5 size of a layout, such as "yolov5n" or "yolov5n-0.75", by depth and the width of the deepest layer.

    Raises:
        LayoutError: it is of another family.
    """
    shapes = {p.name: p.shape for p in spec.parts}
    first, deepest = (shapes.get(name, (0,))[0] for name in (_FIRST, _DEEPEST))
    blocks = len({n.split(".")[3] for n in shapes if n.startswith(_BLOCK)})
    if blocks and "model.6.cv3.conv.weight" not in shapes:  # YOLOv8 and YOLO11 have other blocks of the same names
        raise LayoutError("this is not the layout of a YOLOv5 detector", where=_BLOCK, remedy="Boards take no other")
    wide = next((w for w in _DEPTHS.get(blocks, ()) if 16 * w >= deepest), None)
    if wide is not None and first:
        return narrower(_WIDTHS[wide], deepest / (16 * wide))
    if first in _WIDTHS and not deepest:
        return _WIDTHS[first]
    raise LayoutError("this is not the layout of a YOLOv5 detector", where=_FIRST)


def find_template(arch: str, imgsz: int, folder: Path | None = None, converter: Converter | None = None) -> Template:
    """The template of an architecture and size; made by the converter if there is none yet.

    Args:
        folder: where templates are kept; by default `templates` in the cache.

    Raises:
        ConfigError: boards do not take this architecture. MissingExtraError: there is no template, and no converter.
        ExportError: the conversion failed.
    """
    path = (folder or cache() / "templates") / f"{arch}-{imgsz}.zip"
    if not path.exists():
        for_devices(arch)
        path.parent.mkdir(parents=True, exist_ok=True)
        request = {"what": "template", "arch": arch, "imgsz": imgsz, "out": str(path.absolute())}
        (converter or Converter()).run(request)
    template = Template.open(path)
    if (template.manifest.arch, template.manifest.imgsz) != (arch, imgsz):
        raise ConfigError(f"is a template of {template.manifest.arch} at {template.manifest.imgsz}", where=path)
    return template


def export_model(
    source: Path,
    out: Path,
    format: Format = "tflite",
    precision: Precision = "fp32",
    imgsz: int = 320,
    *,
    frames: Sequence[NDArray[np.uint8]] = (),
    npu: bool = False,
    templates: Path | None = None,
    converter: Converter | None = None,
) -> dict[str, Any]:
    """Write the model of `source` in a form for devices.

    Args:
        source: a run folder or a model's safetensors.
        frames: for int8: letterboxed (imgsz, imgsz, 3) uint8 frames to calibrate on.
        npu: see `patch`.

    Returns:
        What was written: architecture, size of the file, precision, format.

    Raises:
        ConfigError: a combination that does not exist, or no model. Others as `find_template`, `patch`, `quantize`.
    """
    if format not in ("tflite", "onnx") or precision not in PRECISIONS:
        raise ConfigError(f"no such form: {format}, {precision}", where="export", remedy=f"Precisions: {PRECISIONS}")
    if format == "onnx" and precision not in ("fp32", "fp16"):
        raise ConfigError("ONNX files are written in fp32 and fp16", where="--precision", remedy="Use --format tflite")
    if imgsz < 32 or imgsz % 32:
        raise ConfigError(f"the image size must be a multiple of 32, got {imgsz}", where="--image-size")
    path = model_file(source)
    spec, vector = load_model(path)
    arch = architecture(spec)
    out.parent.mkdir(parents=True, exist_ok=True)
    if format == "onnx":
        request = {"what": "onnx", "model": str(path.absolute()), "arch": arch, "imgsz": imgsz}
        (converter or Converter()).run(request | {"half": precision == "fp16", "out": str(out.absolute())})
    else:
        template = find_template(arch, imgsz, templates, converter)
        write_atomic(out, fill(template, spec, vector, precision, frames, npu=npu))
    return {"arch": arch, "imgsz": imgsz, "format": format, "precision": precision, "bytes": out.stat().st_size}


def fill(
    template: Template,
    spec: ModelSpec,
    vector: Vector,
    precision: Precision,
    frames: Sequence[NDArray[np.uint8]] = (),
    *,
    npu: bool = False,
) -> bytes:
    """A model's flat vector in a template, in any precision."""
    arrays = spec.views(vector)
    if precision == "int8":
        return quantize(template, arrays, frames, npu=npu)
    return patch(template, arrays, precision, npu=npu)


def describe(template: Template) -> str:
    """One line for people."""
    about = template.manifest
    return f"{about.arch} at {about.imgsz}: {', '.join(template.precisions)} ({json.dumps(dict(about.made_with))})"
