"""Reading a `.tflite` file without trusting it: every offset is checked before it is followed.

LiteRT itself may crash on a damaged file, and a crash takes the service with it. This reader walks all the tables that
the interpreter walks and refuses what points outside. It also says where in the file weights, scales and zero points
lie, which is what patching needs. Numbers of fields: TensorFlow's `tensorflow/compiler/mlir/lite/schema/schema.fbs`.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from polypfed.core.errors import PolypfedError

IDENTIFIER = b"TFL3"
TYPES = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64, 6: np.bool_, 7: np.int16, 9: np.int8}
_MOST = 100_000  # tables of one kind
OPERATORS = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 6: "DEQUANTIZE",
    9: "FULLY_CONNECTED", 14: "LOGISTIC", 17: "MAX_POOL_2D", 18: "MUL", 19: "RELU", 22: "RESHAPE",
    23: "RESIZE_BILINEAR", 25: "SOFTMAX", 34: "PAD", 39: "TRANSPOSE", 41: "SUB", 45: "STRIDED_SLICE", 49: "SPLIT",
    60: "PADV2", 97: "RESIZE_NEAREST_NEIGHBOR", 114: "QUANTIZE", 117: "HARD_SWISH",
}  # fmt: skip


class ModelFileError(PolypfedError, ValueError):
    """A model file is damaged, hostile, or not of the form that is expected."""


@dataclass(frozen=True)
class Span:
    """A run of bytes in a file."""

    offset: int
    length: int

    @property
    def stop(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True)
class Tensor:
    """One tensor: its constant bytes if it has any, and where its scales and zero points lie."""

    name: str
    shape: tuple[int, ...]
    type: int
    buffer: int
    data: Span | None
    scale: Span | None
    zero_point: Span | None
    dimension: int


@dataclass(frozen=True)
class Operator:
    """One node: `code` is the builtin operator, 32 for a custom one."""

    code: int
    version: int
    custom: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: int  # position of its options table, 0 if it has none

    @property
    def name(self) -> str:
        """As TensorFlow calls it; the number where it is not one that detectors use."""
        return self.custom or OPERATORS.get(self.code, f"builtin {self.code}")


class TFLite:
    """The graph of a `.tflite` file with one subgraph.

    Attributes:
        data: the file's bytes.
        tensors, operators: of the subgraph, in the order of the file.
        inputs, outputs: numbers of tensors.

    Raises:
        ModelFileError: cut short, an offset that leads outside, an index that names nothing, or several subgraphs.
    """

    def __init__(self, data: bytes, where: object = "") -> None:
        self.data, self.where = data, where
        if len(data) < 16 or data[4:8] != IDENTIFIER:
            raise ModelFileError("is not a TFLite model", where=where)
        try:
            self._read()
        except (struct.error, UnicodeDecodeError, IndexError, OverflowError) as error:
            raise ModelFileError(f"is damaged ({error})", where=where) from None

    def _read(self) -> None:
        self._root = self._jump(0)
        self._subgraph, *more = self._tables(self._root, 2) or [0]
        if more or not self._subgraph:
            raise ModelFileError(f"has {len(more) + 1} graphs, not one", where=self.where)
        self._buffers = [self._buffer(t) for t in self._tables(self._root, 4)]
        codes = [self._code(t) for t in self._tables(self._root, 1)]
        self.tensors = [self._tensor(t) for t in self._tables(self._subgraph, 0)]
        self.inputs, self.outputs = (self._indices(self._subgraph, f, len(self.tensors)) for f in (1, 2))
        self.operators = [self._operator(t, codes) for t in self._tables(self._subgraph, 3)]
        if not self.inputs or not self.outputs or not self.operators:
            raise ModelFileError("has no inputs, outputs or operators", where=self.where)

    def values(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        """The constant of a tensor, in its own shape and dtype; a view of the file."""
        if tensor.data is None or tensor.type not in TYPES:
            raise ModelFileError(f"{tensor.name!r} is not a constant of a known type", where=self.where)
        dtype = np.dtype(TYPES[tensor.type])
        if tensor.data.length != dtype.itemsize * int(np.prod(tensor.shape, dtype=object)):
            raise ModelFileError(f"{tensor.name!r} has another size than its shape says", where=self.where)
        return np.frombuffer(self.data, dtype, tensor.data.length // dtype.itemsize, tensor.data.offset).reshape(
            tensor.shape
        )

    def scale(self, index: int) -> np.float32:
        """The scale of a tensor that has one for all its values."""
        span = self.tensors[index].scale
        if span is None:
            raise ModelFileError(f"{self.tensors[index].name!r} has no scale", where=self.where)
        return np.float32(np.frombuffer(self.data, "<f4", 1, span.offset)[0])

    def zero_point(self, index: int) -> np.float32:
        """Its zero point."""
        span = self.tensors[index].zero_point
        return np.float32(np.frombuffer(self.data, "<i8", 1, span.offset)[0] if span else 0)

    @cached_property
    def by_name(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {t.name: t for t in self.tensors}

    def with_outputs(self, outputs: list[int]) -> bytes:
        """The same model with other outputs: a new list behind the file, and the one offset that leads to it.

        Signatures are left as they are, so such a file is to be run through the plain interface.
        """
        field = self._field(self._subgraph, 2)
        start = len(self.data) + -len(self.data) % 4
        changed = bytearray(self.data) + bytes(start - len(self.data))
        changed += struct.pack(f"<{len(outputs) + 1}I", len(outputs), *outputs)
        struct.pack_into("<I", changed, field, start - field)
        return bytes(changed)

    def half_pixel_flags(self) -> Iterator[int]:
        """Offsets of the bytes that hold `half_pixel_centers` of RESIZE_NEAREST_NEIGHBOR operators."""
        for operator in self.operators:
            if operator.code == 97 and operator.options and (place := self._field(operator.options, 1)):
                yield place

    def _buffer(self, table: int) -> Span | None:
        if place := self._field(table, 0):
            start, count = self._vector(place, 1)
            return Span(start, count) if count else None
        offset, size = (self._number(table, f, "<Q") for f in (1, 2))
        if not offset or not size:
            return None
        self._check(offset, size)
        return Span(offset, size)

    def _code(self, table: int) -> tuple[int, int, str]:
        code = max(self._number(table, 0, "<b"), self._number(table, 3, "<i"))
        return code, self._number(table, 2, "<i", 1), self._text(table, 1)

    def _tensor(self, table: int) -> Tensor:
        shape = self._numbers(table, 0, "<i4")
        if min(shape, default=0) < 0:
            raise ModelFileError("a tensor has a negative shape", where=self.where)
        buffer = self._number(table, 2, "<I")
        if buffer >= len(self._buffers):
            raise ModelFileError(f"a tensor names buffer {buffer} of {len(self._buffers)}", where=self.where)
        quantization = self._field(table, 4)
        scale = zero = None
        dimension = 0
        if quantization:
            inner = self._jump(quantization)
            scale, zero = self._span(inner, 2, 4), self._span(inner, 3, 8)
            dimension = self._number(inner, 6, "<i")
        kind = self._number(table, 1, "<b")
        return Tensor(self._text(table, 3), shape, kind, buffer, self._buffers[buffer], scale, zero, dimension)

    def _operator(self, table: int, codes: list[tuple[int, int, str]]) -> Operator:
        index = self._number(table, 0, "<I")
        if index >= len(codes):
            raise ModelFileError(f"an operator has code {index} of {len(codes)}", where=self.where)
        inputs, outputs = (self._indices(table, f, len(self.tensors)) for f in (1, 2))
        options = self._field(table, 4)
        code, version, custom = codes[index]
        return Operator(code, version, custom, inputs, outputs, self._jump(options) if options else 0)

    def _indices(self, table: int, field: int, limit: int) -> tuple[int, ...]:
        found = self._numbers(table, field, "<i4")
        if any(not -1 <= i < limit for i in found):  # -1 is an optional input that is left out
            raise ModelFileError("a tensor is named that does not exist", where=self.where)
        return found

    def _numbers(self, table: int, field: int, dtype: str) -> tuple[int, ...]:
        span = self._span(table, field, np.dtype(dtype).itemsize)
        if span is None:
            return ()
        values = np.frombuffer(self.data, dtype, span.length // np.dtype(dtype).itemsize, span.offset)
        return tuple(values.tolist())

    def _span(self, table: int, field: int, width: int) -> Span | None:
        place = self._field(table, field)
        if not place:
            return None
        start, count = self._vector(place, width)
        return Span(start, count * width) if count else None

    def _text(self, table: int, field: int) -> str:
        span = self._span(table, field, 1)
        return self.data[span.offset : span.stop].decode() if span else ""

    def _tables(self, table: int, field: int) -> list[int]:
        place = self._field(table, field)
        if not place:
            return []
        start, count = self._vector(place, 4)
        if count > _MOST:
            raise ModelFileError(f"lists {count} parts", where=self.where)
        return [self._jump(start + 4 * i) for i in range(count)]

    def _vector(self, place: int, width: int) -> tuple[int, int]:
        start = self._jump(place)
        count = self._at(start, "<I")
        self._check(start + 4, count * width)
        return start + 4, count

    def _number(self, table: int, field: int, form: str, default: int = 0) -> int:
        place = self._field(table, field)
        return self._at(place, form) if place else default

    def _field(self, table: int, number: int) -> int:
        """Position of a table's field, 0 if the table has it not."""
        virtual = table - self._at(table, "<i")
        size = self._at(virtual, "<H")
        slot = 4 + 2 * number
        offset = self._at(virtual + slot, "<H") if slot + 2 <= size else 0
        return table + offset if offset else 0

    def _jump(self, place: int) -> int:
        target = place + self._at(place, "<I")
        self._check(target, 4)
        return target

    def _at(self, place: int, form: str) -> int:
        self._check(place, struct.calcsize(form))
        value: int = struct.unpack_from(form, self.data, place)[0]
        return value

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > len(self.data):
            raise ModelFileError("is cut short or damaged: an offset leads outside", where=self.where)
