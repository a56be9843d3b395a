"""Warm start: what fits is taken, anything odd is refused before a value has changed."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from polypfed.core.errors import DataError
from polypfed.core.model import ModelSpec
from polypfed.core.rundir import save_model
from polypfed.detect.warm import warm_start


def model() -> dict[str, np.ndarray]:
    return {
        "a.weight": np.zeros((2, 3), np.float32),
        "b.bias": np.zeros(4, np.float32),
        "head": np.zeros(2, np.float32),
    }


def archive(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_what_fits_is_taken(tmp_path):
    arrays = model()
    file = archive(
        tmp_path / "w.npz",
        **{
            "a.weight": np.arange(6, dtype=np.float16).reshape(2, 3),
            "b.bias": np.asfortranarray(np.ones(4)),
            "head": np.ones(80, np.float32),
            "other": np.ones(1, np.float32),
            "count": np.array(3),
        },
    )
    report = warm_start(arrays, file)
    assert arrays["a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays["a.weight"].dtype == np.float32
    assert arrays["b.bias"].tolist() == [1] * 4
    assert arrays["head"].tolist() == [0, 0]
    assert (report.matched, report.missing, report.unexpected) == (("a.weight", "b.bias"), ("head",), ("head", "other"))
    assert report.share == pytest.approx(10 / 12)
    assert str(report) == "2 arrays matched (83% of all values), 1 missing, 2 unexpected"


def test_a_model_of_a_run_is_as_good_as_an_archive(tmp_path):
    given = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b.bias": np.ones(5, np.float32)}
    spec = ModelSpec.of(given)
    save_model(tmp_path / "m.safetensors", spec, spec.pack(given))
    arrays = model()
    report = warm_start(arrays, tmp_path / "m.safetensors")
    assert arrays["a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert report.matched == ("a.weight",)
    with pytest.raises(DataError, match=r"m\.safetensors: is larger than 40 bytes"):
        warm_start(arrays, tmp_path / "m.safetensors", limit=40)
    (tmp_path / "m.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match=r"m\.safetensors: this is no safetensors file"):
        warm_start(arrays, tmp_path / "m.safetensors")


def test_fortran_order_is_read_as_meant(tmp_path):
    arrays = {"w": np.zeros((2, 3), np.float32)}
    meant = np.arange(6, dtype=np.float32).reshape(2, 3)
    warm_start(arrays, archive(tmp_path / "w.npz", w=np.asfortranarray(meant)))
    assert (arrays["w"] == meant).all()


def refuse(file: Path, message: str, **settings) -> None:
    arrays = model()
    with pytest.raises(DataError) as raised:
        warm_start(arrays, file, **settings)
    assert message in str(raised.value)
    assert str(file) in str(raised.value)
    assert not any(a.any() for a in arrays.values())


FULL = {"a.weight": np.ones((2, 3), np.float32), "b.bias": np.ones(4, np.float32), "head": np.ones(2, np.float32)}


def test_too_small_a_share(tmp_path):
    file = archive(tmp_path / "w.npz", **{"b.bias": FULL["b.bias"]})
    refuse(file, "but at least 90% must match", at_least=0.9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path, value):
    refuse(
        archive(tmp_path / "w.npz", **FULL | {"head": np.array([1, value])}), "'head' holds values that are not finite"
    )


def test_overflow_on_the_way_to_float32(tmp_path):
    refuse(archive(tmp_path / "w.npz", **FULL | {"head": np.array([1, 1e300])}), "not finite")


def test_pickled_objects_never_run(tmp_path, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "boom",))

    file = tmp_path / "w.npz"
    np.savez(file, **FULL, bomb=np.array([Bomb()], dtype=object))
    refuse(file, "type object")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("dtype", ["U5", "S5", "complex64", "datetime64[s]"])
def test_other_types(tmp_path, dtype):
    refuse(archive(tmp_path / "w.npz", **FULL, odd=np.zeros(2, dtype)), "is of type")


def test_missing_wrong_or_damaged_files(tmp_path):
    refuse(tmp_path / "none.npz", "no such file")
    (tmp_path / "text.npz").write_text("hello")
    refuse(tmp_path / "text.npz", "not an archive")
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as z:
        z.writestr("a.weight.npy", b"not an array")
    refuse(tmp_path / "z.npz", "not an archive of plain arrays")
    whole = archive(tmp_path / "w.npz", **FULL)
    data = bytearray(whole.read_bytes())
    data[150] ^= 0xFF  # inside the first array: the archive's checksum notices
    (tmp_path / "cut.npz").write_bytes(data)
    refuse(tmp_path / "cut.npz", "not an archive")


def test_digest(tmp_path):
    file = archive(tmp_path / "w.npz", **FULL)
    refuse(file, "SHA-256", sha256="0" * 64)
    warm_start(model(), file, sha256=hashlib.sha256(file.read_bytes()).hexdigest().upper())


def test_archives_that_unpack_to_too_much(tmp_path):
    refuse(archive(tmp_path / "w.npz", **FULL), "more than 100 bytes", limit=100)


def test_a_header_that_claims_more_than_is_there(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as z:
        z.writestr("a.weight.npy", buffer.getvalue() + b"1234")
    refuse(tmp_path / "w.npz", "cut short")


def test_coco_weights_fit_the_backbone_and_neck(real_data):
    pytest.importorskip("torch", reason="install polypfed[yolo]")
    from polypfed.clients.flat import FlatModel
    from polypfed.detect import yolo

    flat = FlatModel(yolo.build())
    report = warm_start(flat.spec.views(flat.values), real_data / "weights" / "yolov5n_coco_fp16.npz")
    assert report.share == pytest.approx(0.70, abs=0.01)
    assert all(name.startswith("model.24.") for name in report.missing)
