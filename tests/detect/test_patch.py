"""Patched files against torch, against what a template may not hold, and against models of another kind."""

import io
import json
import time
import zipfile

import numpy as np
import pytest

from polypfed.core.errors import ConfigError, LayoutError
from polypfed.detect.patch import patch
from polypfed.detect.template import SCHEMA, Blank, Template, pack_template
from polypfed.detect.tflite import ModelFileError


def run(data: bytes, frame: np.ndarray) -> list[np.ndarray]:
    from polypfed.detect.runtime import interpreter

    runner = interpreter(data)
    runner.set_tensor(runner.get_input_details()[0]["index"], frame)
    runner.invoke()
    return [runner.get_tensor(d["index"]) for d in runner.get_output_details()]


def torch_heads(mini, arrays, frame):
    import torch

    model = mini.Mini().eval()
    model.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()}, strict=False)
    with torch.no_grad():
        return [o.permute(0, 2, 3, 1).numpy() for o in model(torch.from_numpy(frame).permute(0, 3, 1, 2))]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_patched_file_is_the_torch_model(mini, template, litert, seed):
    arrays, frame = mini.random_arrays(seed), np.random.default_rng(seed).random((1, 64, 64, 3), np.float32)
    wanted = torch_heads(mini, arrays, frame)
    for precision, error in (("fp32", 1e-4), ("fp16", 0.02), ("dynamic", 0.5)):
        for got, want in zip(run(patch(template, arrays, precision), frame), wanted, strict=True):
            assert got == pytest.approx(want, abs=error * max(1.0, float(np.abs(want).max()))), precision


def test_precisions_differ_as_they_should(template, arrays, litert):
    frame = np.random.default_rng(0).random((1, 64, 64, 3), np.float32)
    exact = run(patch(template, arrays), frame)
    half, dynamic = (run(patch(template, arrays, p), frame) for p in ("fp16", "dynamic"))
    errors = [max(np.abs(a - b).max() for a, b in zip(exact, some, strict=True)) for some in (half, dynamic)]
    assert 0 < errors[0] < errors[1]


def test_only_weights_change(template, arrays):
    blank, data = template.blank("fp32"), patch(template, arrays)
    assert len(data) == len(blank.data)
    changed = np.flatnonzero(np.frombuffer(data, np.uint8) != np.frombuffer(blank.data, np.uint8))
    inside = np.zeros(len(data), bool)
    for slot in blank.slots:
        inside[slot.weight.offset : slot.weight.stop] = inside[slot.bias.offset : slot.bias.stop] = True
    assert inside[changed].all()
    assert patch(template, arrays) == data


def test_the_half_pixel_flag_changes_nothing_but_itself(template, arrays, litert):
    plain, npu = patch(template, arrays), patch(template, arrays, npu=True)
    places = [i for i in range(len(plain)) if plain[i] != npu[i]]
    assert places == sorted(template.blank("fp32").graph.half_pixel_flags())
    assert len(places) == 1
    frame = np.random.default_rng(0).random((1, 64, 64, 3), np.float32)
    for a, b in zip(run(plain, frame), run(npu, frame), strict=True):
        assert (a == b).all()


def test_models_that_do_not_belong(template, arrays):
    with pytest.raises(LayoutError, match=r"scores\.0\.weight: is missing; the template wants"):
        patch(template, {n: a for n, a in arrays.items() if n != "scores.0.weight"})
    with pytest.raises(LayoutError, match="another architecture"):
        patch(template, arrays | {"stem.conv.weight": np.zeros((9, 3, 3, 3), np.float32)})
    with pytest.raises(LayoutError, match=r"extra\.conv\.weight: has no place"):
        patch(template, arrays | {"extra.conv.weight": np.zeros((1, 1, 1, 1), np.float32)})
    with pytest.raises(LayoutError, match="negative variance"):
        patch(template, arrays | {"stem.bn.running_var": np.full(8, -1, np.float32)})
    with pytest.raises(LayoutError, match="half precision"):
        patch(template, arrays | {"scores.0.weight": np.full((1, 16, 1, 1), 1e6, np.float32)}, "fp16")
    with pytest.raises(ConfigError, match="int8 needs frames"):
        patch(template, arrays, "int8")


def repack(template: Template, **changes) -> bytes:
    files = {f"{p}.tflite": template.blank(p).data for p in template.precisions}
    files["manifest.json"] = json.dumps(template.manifest.to_json()).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (files | changes).items():
            archive.writestr(name, data)
    return out.getvalue()


def test_hostile_templates(template, arrays):
    assert patch(Template(repack(template)), arrays) == patch(template, arrays)
    about = template.manifest.to_json()
    cases = {
        "is not a template": b"PK\x03\x04 nonsense",
        "not the one the manifest names": repack(template, **{"fp32.tflite": b"other"}),
        "no usable manifest": repack(template, **{"manifest.json": b'{"schema": "x"}'}),
        "is not a template \\(": repack(template, **{"manifest.json": b"{"}),
    }
    for message, data in cases.items():
        with pytest.raises(ModelFileError, match=message):
            Template(data)
    short = json.dumps(about | {"layers": about["layers"][1:]}).encode()
    with pytest.raises(ModelFileError, match="convolutions, the manifest"):
        Template(repack(template, **{"manifest.json": short})).blank("fp32")
    with pytest.raises(ModelFileError, match="cannot be read"):
        Template.open("/nowhere/at/all.zip")
    assert about["schema"] == SCHEMA


def test_a_template_in_the_wrong_order_is_refused(template, arrays):
    layers = [list(pair) for pair in template.manifest.to_json()["layers"]]
    about = template.manifest.to_json() | {"layers": layers[::-1]}
    turned = Template(repack(template, **{"manifest.json": json.dumps(about).encode()}))
    with pytest.raises(LayoutError):
        patch(turned, arrays)


def test_packing_blanks_every_weight(template, arrays):
    filled = {p: patch(template, arrays, p) for p in ("fp32", "dynamic")}
    again = Template(pack_template(template.manifest, filled))
    assert again.precisions == ("fp32", "dynamic")
    for slot in again.blank("fp32").slots:
        assert not any(again.blank("fp32").data[slot.weight.offset : slot.weight.stop])
    assert patch(again, arrays) == filled["fp32"]
    assert pack_template(template.manifest, filled) == pack_template(template.manifest, filled)
    with pytest.raises(ModelFileError, match="holds no int8"):
        again.blank("int8")


def test_a_file_whose_layers_share_bytes_is_refused(template):
    data = bytearray(template.blank("fp32").data)
    graph = template.blank("fp32").graph
    convs = [o for o in graph.operators if o.code == 3]
    same = [o for o in convs if graph.tensors[o.inputs[1]].shape == graph.tensors[convs[-1].inputs[1]].shape]
    table = {graph.tensors[o.inputs[1]].buffer for o in same}
    assert len(table) == len(same) > 1
    first, second = sorted(table)[:2]
    needle, place = first.to_bytes(4, "little"), -1
    for t in graph._tables(graph._subgraph, 0):
        if graph._number(t, 2, "<I") == first:
            place = graph._field(t, 2)
    assert data[place : place + 4] == needle
    data[place : place + 4] = second.to_bytes(4, "little")
    with pytest.raises(ModelFileError, match="share their weights"):
        Blank(bytes(data), template.layers)


def test_it_takes_milliseconds(template, arrays):
    template.blank("fp32")
    start = time.perf_counter()
    for _ in range(10):
        patch(template, arrays)
    assert (time.perf_counter() - start) / 10 < 0.1  # 0.5 ms on a quiet machine
