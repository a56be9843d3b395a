"""The reader against the runtime's own view of the file, and against files that were cut, flipped and forged."""

import os
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.detect.patch import patch
from polypfed.detect.tflite import ModelFileError, TFLite


def test_it_sees_what_the_runtime_sees(template, litert):
    from polypfed.detect.runtime import interpreter

    for precision in template.precisions:
        data = template.blank(precision).data
        graph, runner = TFLite(data), interpreter(data)
        assert [graph.tensors[i].name for i in graph.inputs] == [d["name"] for d in runner.get_input_details()]
        assert list(graph.outputs) == [d["index"] for d in runner.get_output_details()]
        for details in runner.get_tensor_details():
            if details["index"] < len(graph.tensors):  # delegates append their own
                tensor = graph.tensors[details["index"]]
                assert (tensor.name, tensor.shape) == (details["name"], tuple(details["shape"]))
        for i in graph.outputs:
            if precision == "int8":
                wanted = runner._get_tensor_details(i, 0)["quantization"]
                assert (graph.scale(i), graph.zero_point(i)) == pytest.approx(wanted)


def test_no_transposition_in_the_template(template):
    for precision in template.precisions:
        assert "TRANSPOSE" not in {o.name for o in template.blank(precision).graph.operators}


def test_new_outputs(template, arrays, litert):
    from polypfed.detect.runtime import interpreter

    data = patch(template, arrays)
    graph = TFLite(data)
    first = graph.operators[0].outputs[0]
    changed = graph.with_outputs([first, *graph.outputs])
    assert changed[: len(data)].count(0) > 0
    assert len(changed) < len(data) + 64
    assert TFLite(changed).outputs == (first, *graph.outputs)
    frame = np.random.default_rng(0).random((1, 64, 64, 3), np.float32)
    runs = [interpreter(d) for d in (data, changed)]
    for run in runs:
        run.set_tensor(graph.inputs[0], frame)
        run.invoke()
    for i in graph.outputs:
        assert (runs[0].get_tensor(i) == runs[1].get_tensor(i)).all()
    assert runs[1].get_tensor(first).std() > 0


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0" * 64, b"\x1c\0\0\0TFL3" + b"\xff" * 200, b"\x10\0\0\0TFL3" * 9])
def test_what_is_no_model(data):
    with pytest.raises(ModelFileError, match=r"a\.tflite: "):
        TFLite(data, "a.tflite")


def test_cut_anywhere(template):
    data = template.blank("fp32").data
    for length in range(0, len(data) - 16, 997):
        with pytest.raises(ModelFileError):
            TFLite(data[:length])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_byte_gives_a_graph_or_one_error(template, data):
    changed = bytearray(template.blank("int8").data)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, 20_000))] = data.draw(st.integers(0, 255))
    try:
        graph = TFLite(bytes(changed))
    except ModelFileError:
        return
    everything = [i for o in graph.operators for i in (*o.inputs, *o.outputs)]
    assert all(-1 <= i < len(graph.tensors) for i in everything)
    assert all(t.data is None or t.data.stop <= len(changed) for t in graph.tensors)


def test_an_offset_that_points_back_into_itself(template):
    data = bytearray(template.blank("fp32").data)
    root = struct.unpack_from("<I", data)[0]
    struct.pack_into("<i", data, root, -(2**31))  # the virtual table lies outside
    with pytest.raises(ModelFileError, match="outside"):
        TFLite(bytes(data))


def test_hostile_files_do_not_end_the_process(template, litert, tmp_path):
    """Files that pass the reader may still surprise the runtime, so they are tried in a process of their own."""
    path = tmp_path / "model"
    path.write_bytes(template.blank("fp32").data)
    program = """
import sys, numpy as np
from pathlib import Path
from polypfed.core.errors import PolypfedError
from polypfed.detect.litert import LiteRTDetector
data, rng, refused = Path(sys.argv[1]).read_bytes(), np.random.default_rng(0), 0
for length in (0, 7, 100, 5000, len(data) // 2, len(data) - 1):
    try:
        LiteRTDetector(data[:length])
        print("accepted", length)
    except PolypfedError:
        refused += 1
print("refused", refused)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode not in (-signal.SIGSEGV, -signal.SIGABRT), done.stderr[-500:]
    assert "refused 5" in done.stdout or "refused 6" in done.stdout, done.stdout + done.stderr
