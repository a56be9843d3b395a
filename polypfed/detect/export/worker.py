"""The half of an export that runs in the converter's own environment: torch in, templates and ONNX files out.

`python -m polypfed.detect.export.worker REQUEST` reads a JSON request and does it. Nothing else of the library imports
this module: litert-torch and its thousand megabytes exist in that environment alone.
"""

import importlib.metadata
import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polypfed.core.errors import PolypfedError
from polypfed.core.rundir import load_model
from polypfed.detect import yolo
from polypfed.detect.fold import Convolution, Floats, convolutions
from polypfed.detect.template import CONV, DEQUANTIZE, Manifest, Precision, write_template
from polypfed.detect.tflite import ModelFileError, TFLite

_PACKAGES = ("litert-torch", "litert-converter", "ai-edge-quantizer", "ai-edge-litert", "torch", "ultralytics")


class RawHeads(torch.nn.Module):
    """A YOLO detector up to its raw heads: per level the box distribution, and the class scores after the sigmoid.

    Coordinates and scores in one tensor would share one scale when quantised, and pixels would erase scores; softmax,
    distances and suppression are left to float code, for the few cells that matter.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(1, 3, s, s) -> per level (1, 64, h, w) and (1, classes, h, w)."""
        kept: list[Any] = []
        *body, head = self.model.model
        for layer in body:
            x = layer(_gather(layer.f, x, kept))
            kept.append(x if layer.i in self.model.save else None)
        levels = [x if j == -1 else kept[j] for j in head.f]
        out: list[torch.Tensor] = []
        for box, score, level in zip(head.cv2, head.cv3, levels, strict=True):
            out += [box(level), score(level).sigmoid()]
        return tuple(out)


def _gather(source: int | list[int], x: torch.Tensor, kept: list[Any]) -> Any:
    if source == -1:
        return x
    if isinstance(source, int):
        return kept[source]
    return [x if j == -1 else kept[j] for j in source]


def probe(model: torch.nn.Module, seed: int = 0) -> dict[str, Floats]:
    """Give every float array of a model random values, so that no two are alike; returns them by name."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Floats] = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not name.endswith("dfl.conv.weight"):
            values = rng.normal(0, 1 / np.sqrt(max(tensor[0].numel(), 1)), tuple(tensor.shape)).astype(np.float32)
            arrays[name] = np.abs(values) + np.float32(0.5) if name.endswith("running_var") else values
            tensor.copy_(torch.from_numpy(arrays[name]))
    return arrays


def put_folded(model: Any, layers: Sequence[Convolution], arrays: Mapping[str, Floats]) -> None:
    """Write NumPy's folded arrays into the modules of a fused model, so that the converter stores these very bytes."""
    for layer in layers:
        weight, bias = layer.fold(arrays)
        module = model.get_submodule(layer.name)
        module.weight.data.copy_(torch.from_numpy(weight.transpose(0, 3, 1, 2).copy()))
        module.bias.data.copy_(torch.from_numpy(bias))


def to_tflite(heads: torch.nn.Module, imgsz: int, outputs: int) -> bytes:
    """The fp32 `.tflite` of raw heads: NHWC in and out, no transposition."""
    import litert_torch

    wrapped = litert_torch.to_channel_last_io(heads.eval(), args=[0], outputs=list(range(outputs)))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.tflite"
        litert_torch.convert(wrapped, (torch.zeros(1, imgsz, imgsz, 3),)).export(str(path))
        return path.read_bytes()


def order(graph: TFLite, layers: Sequence[Convolution], arrays: Mapping[str, Floats]) -> list[Convolution]:
    """The model's convolutions in the order of the file's, found by their bytes.

    Raises:
        ModelFileError: one is missing, or found twice.
    """
    known: dict[tuple[bytes, bytes], Convolution] = {}
    for layer in layers:
        weight, bias = layer.fold(arrays)
        if known.setdefault((weight.tobytes(), bias.tobytes()), layer) is not layer:
            raise ModelFileError("has the same probe values as another layer", where=layer.name)
    found = []
    for node in (o for o in graph.operators if o.code == CONV):
        weight, bias = (graph.values(graph.tensors[i]) for i in node.inputs[1:3])
        layer = known.pop((weight.tobytes(), bias.tobytes()), None)  # type: ignore[arg-type]
        if layer is None:
            raise ModelFileError("holds weights of no layer, or of one twice", where=graph.tensors[node.inputs[1]].name)
        found.append(layer)
    if known:
        raise ModelFileError("is not in the file", where=next(iter(known.values())).name)
    return found


def requantize(model: bytes, imgsz: int) -> dict[Precision, bytes]:
    """The file in the other precisions. Their weights and scales are blanked later; only their graphs count."""
    from ai_edge_quantizer import qtyping, quantizer, recipe, recipe_manager

    half = recipe_manager.RecipeManager()
    half.add_quantization_config(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        algorithm_key="float_casting",
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
            compute_precision=qtyping.ComputePrecision.FLOAT,
        ),
    )
    recipes = {"fp16": half.get_quantization_recipe(), "dynamic": recipe.dynamic_wi8_afp32()}
    made: dict[Any, bytes] = {}
    for name, chosen in (recipes | {"int8": recipe.static_wi8_ai8()}).items():
        work = quantizer.Quantizer(bytearray(model), chosen)
        ranges = None
        if name == "int8":
            frame = np.random.default_rng(0).random((1, imgsz, imgsz, 3), np.float32)
            ranges = work.calibrate({"serving_default": [{"args_0": frame}]})
        made[name] = bytes(work.quantize(ranges).quantized_model)
    return made


def make_template(
    model: torch.nn.Module, heads: torch.nn.Module, outputs: int, imgsz: int, arch: str, classes: int, path: Path
) -> None:
    """Probe, fold, convert, match, quantise, blank, write."""
    arrays = probe(model)
    layers = convolutions(arrays)
    fused: Any = model
    fused.fuse(verbose=False)
    put_folded(model, layers, arrays)
    fp32 = to_tflite(heads, imgsz, outputs)
    graph = TFLite(fp32)
    if any(o.name == "TRANSPOSE" for o in graph.operators):
        raise ModelFileError("holds transpositions: another version of the converter is needed", where=arch)
    found = order(graph, layers, arrays)
    files: dict[Precision, bytes] = {"fp32": fp32, **requantize(fp32, imgsz)}
    _same_weights(files, found, arrays)
    made_with = {name: importlib.metadata.version(name) for name in _PACKAGES}
    manifest = Manifest(arch, classes, imgsz, tuple((x.name, x.norm) for x in found), {}, made_with)
    write_template(path, manifest, files)


def _same_weights(
    files: Mapping[Precision, bytes], layers: Sequence[Convolution], arrays: Mapping[str, Floats]
) -> None:
    """That the quantiser kept the order of the convolutions: its weights are ours within one step."""
    for precision, data in files.items():
        graph = TFLite(data)
        cast = {o.outputs[0]: o.inputs[0] for o in graph.operators if o.code == DEQUANTIZE}
        nodes = [o for o in graph.operators if o.code == CONV]
        for layer, node in zip(layers, nodes, strict=True):
            tensor = graph.tensors[cast.get(node.inputs[1], node.inputs[1])]
            values, weight = graph.values(tensor).astype(np.float32), layer.fold(arrays)[0]
            if tensor.scale is not None:
                scales = np.frombuffer(graph.data, np.float32, tensor.scale.length // 4, tensor.scale.offset)
                values = values * scales[:, None, None, None]
            if np.abs(values - weight).max() > np.abs(weight).max() / 100:
                raise ModelFileError(f"{precision}: the quantiser moved the layers", where=layer.name)


def build_template(arch: str, imgsz: int, path: Path) -> None:
    """The template of a YOLOv5 architecture with one class."""
    yolo.check_size(imgsz)
    model = yolo.build(arch).eval()
    make_template(model, RawHeads(model), 2 * len(model.model[-1].cv2), imgsz, arch, 1, path)


def export_onnx(model: Path, arch: str, imgsz: int, half: bool, path: Path) -> None:
    """A global model as ONNX: (1, 3, s, s) float in [0, 1] in, raw heads out, channels first."""
    import onnx

    spec, vector = load_model(model)
    net = yolo.build(arch)
    net.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in spec.views(vector).items()}, strict=False)
    net.eval().fuse(verbose=False)
    heads = RawHeads(net).eval()
    frame = torch.zeros(1, 3, imgsz, imgsz)
    if half:
        heads, frame = heads.half(), frame.half()
    names = [f"{kind}{8 * 2**i}" for i in range(len(net.model[-1].cv2)) for kind in ("boxes", "scores")]
    program = torch.onnx.export(heads, (frame,), dynamo=True, input_names=["image"], output_names=names, verbose=False)
    assert program is not None
    made = program.model_proto
    made.metadata_props.add(key="polypfed", value=json.dumps({"arch": arch, "imgsz": imgsz, "layout": "raw heads"}))
    onnx.checker.check_model(made)
    path.write_bytes(made.SerializeToString())


def main(request: Path) -> int:
    """Do a request; the exit code is 0, or 1 after one line on standard error."""
    logging.disable(logging.WARNING)
    wanted = json.loads(request.read_text())
    what, out = wanted.pop("what"), Path(wanted.pop("out"))
    try:
        if what == "template":
            build_template(path=out, **wanted)
        else:
            export_onnx(Path(wanted.pop("model")), path=out, **wanted)
    except PolypfedError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the parent process reads it
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
