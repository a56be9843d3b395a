"""Templates: a detector converted once, with its weights blanked, that any model of the same architecture fits into.

A template is one zip file: `manifest.json` and a `.tflite` per precision, whose weights are zeros and which therefore
take some 60 kB. Converting takes seconds, a converter of a gigabyte, and x86; filling in weights takes milliseconds and
NumPy. Which convolution of the file is which module of the model was found once, by its bytes, when the template was
made.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from polypfed.core.files import write_atomic
from polypfed.core.messages import strict_json
from polypfed.detect.fold import Convolution
from polypfed.detect.tflite import ModelFileError, Operator, Span, TFLite

Precision = Literal["fp32", "fp16", "dynamic", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SCHEMA = "polypfed.template/1"
_LIMIT = 2**30  # bytes a template may unpack to; yolov5x in all precisions has 700 MB
CONV, DEPTHWISE, DEQUANTIZE = 3, 4, 6


@dataclass(frozen=True)
class Manifest:
    """What a template is of.

    Attributes:
        arch: such as "yolov5n". classes: number of classes. imgsz: side of the square input.
        layers: (module, BatchNorm prefix or "") of every convolution, in the order of the file's operators.
        sha256: of each `.tflite` in the zip, by precision.
        made_with: versions of the converter and what it rests on.
    """

    arch: str
    classes: int
    imgsz: int
    layers: tuple[tuple[str, str], ...]
    sha256: Mapping[str, str]
    made_with: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"schema": SCHEMA, **asdict(self), "layers": [list(x) for x in self.layers]}

    @classmethod
    def from_json(cls, value: Any, where: object) -> "Manifest":
        """The inverse of `to_json`.

        Raises:
            ModelFileError: the value is not a manifest.
        """
        try:
            if value["schema"] != SCHEMA:
                raise ValueError(f"schema {value['schema']!r}")
            layers = tuple((str(name), str(norm)) for name, norm in value["layers"])
            digests = {str(k): str(v) for k, v in value["sha256"].items() if k in PRECISIONS}
            made = {str(k): str(v) for k, v in value["made_with"].items()}
            return cls(str(value["arch"]), int(value["classes"]), int(value["imgsz"]), layers, digests, made)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(f"has no usable manifest ({error!r})", where=where) from None


@dataclass(frozen=True)
class Slot:
    """Where one convolution lies in a template's file.

    Attributes:
        layer: which of the model's convolutions. shape: (out, h, w, in) of the weight.
        operator: the CONV_2D. weight, bias: bytes of the constants. scale: of the weight's scales, if quantised.
        bias_scale: of the bias's scales, if quantised.
    """

    layer: Convolution
    shape: tuple[int, ...]
    operator: Operator
    weight: Span
    bias: Span
    scale: Span | None
    bias_scale: Span | None


class Blank:
    """One `.tflite` of a template, read and matched with the model's convolutions.

    Raises:
        ModelFileError: the file is damaged, has other convolutions than the manifest, or two share their bytes.
    """

    def __init__(self, data: bytes, layers: Sequence[Convolution], where: object = "") -> None:
        self.graph, self.data = TFLite(data, where), data
        nodes = [o for o in self.graph.operators if o.code == CONV]
        if len(nodes) != len(layers) or any(o.code == DEPTHWISE for o in self.graph.operators):
            raise ModelFileError(f"has {len(nodes)} convolutions, the manifest {len(layers)}", where=where)
        self._cast = {o.outputs[0]: o.inputs[0] for o in self.graph.operators if o.code == DEQUANTIZE}
        self.slots = [self._slot(layer, node, where) for layer, node in zip(layers, nodes, strict=True)]
        spans = sorted((s for slot in self.slots for s in (slot.weight, slot.bias)), key=lambda s: s.offset)
        if any(a.stop > b.offset for a, b in pairwise(spans)):
            raise ModelFileError("has convolutions that share their weights", where=where)

    def _slot(self, layer: Convolution, node: Operator, where: object) -> Slot:
        if len(node.inputs) != 3 or min(node.inputs) < 0:
            raise ModelFileError("has a convolution without a bias", where=where)
        tensors = self.graph.tensors
        weight, bias = tensors[self._cast.get(node.inputs[1], node.inputs[1])], tensors[node.inputs[2]]
        self.graph.values(weight), self.graph.values(bias)  # sizes fit shapes and types
        if weight.data is None or bias.data is None or len(weight.shape) != 4 or bias.shape != weight.shape[:1]:
            raise ModelFileError(f"has no constant weights for {layer.name}", where=where)
        for span in (weight.scale, bias.scale):
            if span is not None and span.length != 4 * weight.shape[0]:
                raise ModelFileError(f"does not quantise {layer.name} by channel", where=where)
        return Slot(layer, weight.shape, node, weight.data, bias.data, weight.scale, bias.scale)


class Template:
    """An opened template.

    Args:
        data: the zip's bytes. where: its path, for errors.

    Raises:
        ModelFileError: not a template, damaged, too large, or a file whose SHA-256 is not the manifest's.
    """

    def __init__(self, data: bytes, where: object = "template") -> None:
        self.where = where
        try:
            self._files = _unpack(data, where)
            self.manifest = Manifest.from_json(strict_json(self._files.pop("manifest.json")), where)
        except (
            KeyError,
            zipfile.BadZipFile,
            OSError,
            RuntimeError,
            ValueError,
        ) as error:  # a name that is no UTF-8, too
            if isinstance(error, ModelFileError):
                raise
            raise ModelFileError(f"is not a template ({error})", where=where) from None
        for name, digest in self.manifest.sha256.items():
            content = self._files.get(f"{name}.tflite", b"")
            if hashlib.sha256(content).hexdigest() != digest:
                raise ModelFileError(f"{name}.tflite is not the one the manifest names", where=where)
        self._blanks: dict[str, Blank] = {}

    @classmethod
    def open(cls, path: str | Path) -> "Template":
        """Read a template's file."""
        try:
            return cls(Path(path).read_bytes(), path)
        except OSError as error:
            raise ModelFileError(f"cannot be read ({error.strerror})", where=path) from None

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those it holds."""
        return tuple(p for p in PRECISIONS if p in self.manifest.sha256)

    @cached_property
    def layers(self) -> list[Convolution]:
        """The model's convolutions in the order of the files."""
        return [Convolution(name, norm) for name, norm in self.manifest.layers]

    def blank(self, precision: Precision) -> Blank:
        """The file of one precision, read once.

        Raises:
            ModelFileError: the template does not hold it.
        """
        if precision not in self.manifest.sha256:
            known = ", ".join(self.precisions)
            raise ModelFileError(f"holds no {precision} file", where=self.where, remedy=f"It holds {known}")
        if precision not in self._blanks:
            name = f"{precision}.tflite"
            self._blanks[precision] = Blank(self._files[name], self.layers, f"{self.where}: {name}")
        return self._blanks[precision]


def pack_template(manifest: Manifest, files: Mapping[Precision, bytes]) -> bytes:
    """A template's zip, the same bytes for the same content. `files`: `.tflite` by precision, weights not yet blank."""
    layers = [Convolution(*layer) for layer in manifest.layers]
    blank = {precision: _erase(Blank(data, layers)) for precision, data in files.items()}
    digests = {precision: hashlib.sha256(data).hexdigest() for precision, data in blank.items()}
    about = json.dumps(manifest.to_json() | {"sha256": digests}, indent=1).encode()
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in {"manifest.json": about, **{f"{p}.tflite": d for p, d in blank.items()}}.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 9)
    return out.getvalue()


def write_template(path: Path, manifest: Manifest, files: Mapping[Precision, bytes]) -> "Template":
    """Pack, write atomically, and open again."""
    data = pack_template(manifest, files)
    template = Template(data, path)
    for precision in template.precisions:
        template.blank(precision)
    write_atomic(path, data)
    return template


def _erase(blank: Blank) -> bytes:
    data = bytearray(blank.data)
    for slot in blank.slots:
        for span in (slot.weight, slot.bias):
            data[span.offset : span.stop] = bytes(span.length)
    return bytes(data)


def _unpack(data: bytes, where: object) -> dict[str, bytes]:
    wanted = {"manifest.json", *(f"{p}.tflite" for p in PRECISIONS)}
    with zipfile.ZipFile(BytesIO(data)) as archive:
        entries = [e for e in archive.infolist() if e.filename in wanted]
        if sum(e.file_size for e in entries) > _LIMIT:
            raise ModelFileError(f"unpacks to more than {_LIMIT} bytes", where=where)
        try:
            return {e.filename: archive.read(e) for e in entries}
        except (ValueError, EOFError, zlib.error) as error:
            raise ModelFileError(f"is damaged ({error})", where=where) from None
