import hashlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polypfed.core.errors import LayoutError
from polypfed.core.model import ModelSpec, fixed, nbytes, shared

ARRAYS: dict[str, Any] = {
    "bn.mean": np.array([10.0, 11.0], np.float32),
    "w": np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32),
    "bn.count": np.array(7),
    "b": np.array(8.0, np.float32),
    "mask": np.array([True, False]),
}


def spec() -> ModelSpec:
    return ModelSpec.of(ARRAYS, buffers=["bn.mean"])


def test_the_trainable_part_comes_first_and_buffers_ride_behind() -> None:
    assert spec().pack(ARRAYS).tolist() == [1, 2, 3, 4, 5, 6, 8, 10, 11]
    assert (spec().size, spec().boundary) == (9, 7)
    assert (spec().trainable, spec().buffers) == (slice(0, 7), slice(7, 9))


def test_integers_and_booleans_are_compared_but_not_federated() -> None:
    assert [(name, shape) for name, _, shape in spec().local] == [("bn.count", ()), ("mask", (2,))]
    assert "bn.count" not in spec().views(spec().pack(ARRAYS))


def test_views_share_memory_both_ways() -> None:
    vector = spec().pack(ARRAYS)
    views = spec().views(vector)
    views["w"][1, 2] = -1.0
    vector[6] = -2.0
    assert vector[5] == -1.0
    assert views["b"] == -2.0


@given(
    st.lists(hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)), min_size=1),
    st.data(),
)
def test_pack_and_views_are_inverse(arrays: list[Any], data: st.DataObject) -> None:
    named = {f"p{i}": a for i, a in enumerate(arrays)}
    named["first"] = np.ones(1, np.float32)
    behind = data.draw(st.sets(st.sampled_from(sorted(set(named) - {"first"}))))
    layout = ModelSpec.of(named, buffers=behind)
    vector = layout.pack(named)
    assert vector.size == sum(a.size for a in named.values())
    for name, view in layout.views(vector).items():
        np.testing.assert_array_equal(view, named[name])
    assert {p.name for p in layout.parts if p.start >= layout.boundary and p.stop > p.start} <= behind


def test_half_and_double_precision_become_float32() -> None:
    arrays = {"h": np.array([0.1], np.float16), "d": np.array([0.1], np.float64)}
    packed = ModelSpec.of(arrays).pack(arrays)
    assert packed.dtype == np.float32
    assert packed.tolist() == [float(np.float16(0.1)), float(np.float32(0.1))]


def test_pack_copies() -> None:
    arrays = {"w": np.zeros(3, np.float32)}
    ModelSpec.of(arrays).pack(arrays)[:] = 1
    assert not arrays["w"].any()


def test_what_cannot_be_federated_is_named() -> None:
    with pytest.raises(LayoutError, match="'nope'"):
        ModelSpec.of(ARRAYS, buffers=["nope"])
    with pytest.raises(LayoutError, match=r"^z: dtype complex128"):
        ModelSpec.of({"z": np.zeros(2, complex)})
    with pytest.raises(LayoutError, match="no trainable"):
        ModelSpec.of({"n": np.zeros(2, int)})
    with pytest.raises(LayoutError, match="no trainable"):
        ModelSpec.of({"m": np.zeros(2)}, buffers=["m"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": None}, "^w: is missing"),
        ({"extra": np.zeros(1)}, "^extra: is not part of the model"),
        ({"w": np.zeros((3, 2), np.float32)}, r"^w: has shape \(3, 2\), not \(2, 3\)"),
        ({"b": np.zeros(1, np.float32)}, r"^b: has shape \(1,\), not \(\)"),
        ({"bn.count": None}, "^bn.count: is missing"),
    ],
)
def test_pack_refuses_other_arrays(change: dict[str, Any], message: str) -> None:
    arrays = {k: v for k, v in (ARRAYS | change).items() if v is not None}
    with pytest.raises(LayoutError, match=message):
        spec().pack(arrays)


@pytest.mark.parametrize("vector", [np.zeros(9), np.zeros(8, np.float32), np.zeros((9, 1), np.float32)])
def test_views_refuses_other_vectors(vector: Any) -> None:
    with pytest.raises(LayoutError, match=r"not float32\(9,\)"):
        spec().views(vector)


def test_json_gives_the_layout_back() -> None:
    again = ModelSpec.from_json(json.loads(json.dumps(spec().to_json())))
    assert again == spec()
    assert again.digest == spec().digest


def test_the_digest_is_the_sha256_of_the_sorted_json() -> None:
    text = '{"boundary": 2, "local": [], "parts": [["w", [2]]]}'
    assert ModelSpec.of({"w": np.zeros(2)}).digest == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_sees_names_shapes_order_sections_and_local_dtypes() -> None:
    base = {"a": np.zeros((2, 3)), "b": np.zeros(6), "n": np.zeros(1, np.int64)}
    layouts = [
        ModelSpec.of(base),
        ModelSpec.of(base, buffers=["b"]),
        ModelSpec.of({"b": base["b"], "a": base["a"], "n": base["n"]}),
        ModelSpec.of(base | {"a": np.zeros((3, 2))}),
        ModelSpec.of(base | {"n": np.zeros(1, np.int32)}),
        ModelSpec.of({"a": base["a"], "c": base["b"], "n": base["n"]}),
    ]
    assert len({layout.digest for layout in layouts}) == len(layouts)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"parts": [], "boundary": 0, "local": []},
        {"parts": [["w"]], "boundary": 2, "local": []},
        {"parts": [["w", [2]]], "boundary": 3, "local": []},
        {"parts": [["w", [2]]], "boundary": 0, "local": []},
        {"parts": [["w", [2]], ["w", [2]]], "boundary": 2, "local": []},
        {"parts": [["w", [2]], ["v", [-1]]], "boundary": 2, "local": []},
        {"parts": [["w", ["x"]]], "boundary": 2, "local": []},
        {"parts": [["w", [2]]], "boundary": 2, "local": [["n", "<i8"]]},
        {"parts": 3, "boundary": 2, "local": []},
    ],
)
def test_an_impossible_layout_is_refused(value: Any) -> None:
    with pytest.raises(LayoutError, match="not a model layout"):
        ModelSpec.from_json(value)


def test_a_layout_that_lies_about_its_size_costs_no_memory() -> None:
    huge = ModelSpec.from_json({"parts": [["w", [10**14]]], "boundary": 10**14, "local": []})
    with pytest.raises(LayoutError, match="has shape"):
        huge.pack({"w": np.zeros(1, np.float32)})


def test_shared_values_cannot_be_changed_but_the_owner_can() -> None:
    mine = {"c": np.zeros(2, np.float32), "count": 3}
    lent = shared(mine)
    with pytest.raises(ValueError, match="read-only"):
        lent["c"][0] = 1
    with pytest.raises(TypeError):
        lent["d"] = 1  # type: ignore[index]
    mine["c"][0] = 5  # type: ignore[index]
    assert lent["c"][0] == 5
    assert lent["count"] == 3


def test_fixed_and_nbytes() -> None:
    assert not fixed(np.zeros(2, np.float32)).flags.writeable
    assert nbytes({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}) == 20
