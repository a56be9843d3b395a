"""Task, Update, Evaluation, Failure: what travels in a round, and their bytes.

Wire format: `PFED`, version, header length (uint32, little endian), JSON header, safetensors body. No pickle anywhere.
Each named vector is one flat float32 tensor, so that a message costs the same for 4 layers as for 400.
"""

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from polypfed.core.errors import MessageError
from polypfed.core.model import Vector, fixed

Kind = Literal["fit", "evaluate", "step"]
HEADER_LIMIT = 1 << 20
_MAGIC = b"PFED\x01"
_PREFIX = struct.Struct("<5sI")
_METRIC = re.compile(r"[A-Za-z0-9_@./:+-]{1,200}")
_LARGEST = 1e100  # sums of such values over any number of sites stay finite


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Task:
    """Server to client: do `kind` with these vectors.

    Attributes:
        round: the server round, from 1 (0 is the evaluation of the initial model).
        kind: "fit", "evaluate", or "step": a part of a protocol that moves nothing a client keeps.
        vectors: "model" is the global model, (P,); the others are what the strategy broadcasts, (T,).
        config: JSON values: `seed`, `strategy`, `run`, `accepted` (the last round in which this client's update
            counted), `reply_bytes` (the largest reply that will be read).
    """

    round: int
    kind: Kind
    vectors: Mapping[str, Vector]
    config: Mapping[str, Any] = field(default_factory=_empty)

    @property
    def run(self) -> str:
        """The id of the run this task belongs to."""
        return str(self.config.get("run", ""))

    @property
    def seed(self) -> int:
        """The seed for this client in this round."""
        return int(self.config.get("seed", 0))


@dataclass(frozen=True, eq=False)
class Update:
    """Client to server: `vectors["delta"]` = local model - global model, (P,); `weight` = examples trained on.

    A site with an identity adds `base`, the SHA-256 of the model it started from, and `signature`; both are hex.
    """

    client: str
    round: int
    vectors: Mapping[str, Vector]
    weight: int
    metrics: Mapping[str, float] = field(default_factory=_empty)
    run: str = ""
    base: str = ""
    signature: str = ""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Client to server: the received model's metrics on this client's validation set of `weight` examples."""

    client: str
    round: int
    metrics: Mapping[str, float]
    weight: int
    run: str = ""


@dataclass(frozen=True)
class Failure:
    """A client that could not, or was refused; never an exception on the server. `reason` is one word."""

    client: str
    round: int
    reason: str
    detail: str = ""
    run: str = ""


Message = Task | Update | Evaluation | Failure
Reply = Update | Evaluation | Failure
_KINDS: dict[str, type[Task] | type[Update] | type[Evaluation] | type[Failure]] = {
    c.__name__: c for c in (Task, Update, Evaluation, Failure)
}
_INTEGERS, _STRINGS = {"round", "weight"}, {"client", "run", "reason", "detail", "kind", "base", "signature"}
_OPTIONAL = {"base", "signature"}  # left out of the header where they are empty


def stamp(reply: Reply, run: str) -> Reply:
    """The same reply, marked as belonging to `run`."""
    return replace(reply, run=run)


def one_line(text: object, limit: int = 500) -> str:
    """The text on one line, cut to `limit` characters: a reason or detail that someone else may have written."""
    words = " ".join(str(text).split())
    return words if len(words) <= limit else words[: limit - 3] + "..."


def encode(message: Message) -> bytes:
    """The message as bytes; `decode` gives it back.

    Raises:
        MessageError: a metric or config value is not plain JSON, a vector is no array of numbers, or the header
            would be larger than 1 MiB.
    """
    kind = type(message).__name__
    fields = {k: getattr(message, k) for k in message.__dataclass_fields__ if k != "vectors"}
    plain = {k: dict(v) if isinstance(v, Mapping) else v for k, v in fields.items()}
    header = {"type": kind} | {k: v for k, v in plain.items() if v != "" or k not in _OPTIONAL}
    try:
        head = json.dumps(header, separators=(",", ":"), default=_plain, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise MessageError(f"cannot be written as JSON ({error})", where=kind) from None
    head += b" " * (-(_PREFIX.size + len(head)) % 8)  # so that the vectors need not be copied to be aligned
    if len(head) > HEADER_LIMIT:
        raise MessageError(f"has a header of {len(head)} bytes, more than {HEADER_LIMIT}", where=kind)
    body = _body(message.vectors) if isinstance(message, Task | Update) else []
    return b"".join([_PREFIX.pack(_MAGIC, len(head)), head, *body])


def _body(vectors: Mapping[str, Vector]) -> list[bytes | memoryview]:
    """The pieces of a safetensors file, wide types first as there; the vectors themselves are not copied."""
    table, pieces, stop = dict[str, Any](), list[bytes | memoryview](), 0
    arrays = {name: np.asarray(vector, order="C") for name, vector in vectors.items()}
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        if array.dtype not in _WORDS:
            raise MessageError(f"a vector is no array of numbers ({array.dtype})", where="vectors")
        start, stop = stop, stop + array.nbytes
        table[name] = {"dtype": _WORDS[array.dtype], "shape": array.shape, "data_offsets": (start, stop)}
        pieces.append(array.reshape(-1).view(np.uint8).data if array.size else b"")
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return [struct.pack("<Q", len(head)), head, *pieces]


def decode(data: bytes | memoryview, *, limit: int | None = None) -> Message:
    """The message in `data`; its vectors are read-only, and lie in `data` where that is bytes.

    Args:
        limit: refuse more bytes than this before anything is parsed.

    Raises:
        MessageError: the bytes are not one of our messages, whole and well-formed.
    """
    if limit is not None and len(data) > limit:
        raise MessageError(f"{len(data)} bytes, more than the {limit} allowed")
    header, body = _split(memoryview(data))
    kind = _KINDS.get(str(header.pop("type", "")))
    if kind is None:
        raise MessageError("unknown type of message")
    names = set(kind.__dataclass_fields__)
    if wrong := set(header) ^ (names - {"vectors"} - (_OPTIONAL - set(header))):
        raise MessageError(f"fields {sorted(wrong)} are missing or unknown", where=kind.__name__)
    for name, value in header.items():
        _check(name, value)
    if "vectors" in names:
        header["vectors"] = _tensors(body)
    elif body:
        raise MessageError(f"{len(body)} bytes follow the header", where=kind.__name__)
    return kind(**header)


def _split(data: memoryview) -> tuple[dict[str, Any], memoryview]:
    if len(data) < _PREFIX.size:
        raise MessageError(f"only {len(data)} bytes")
    magic, length = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise MessageError("does not begin like a polypfed message")
    if length > HEADER_LIMIT or _PREFIX.size + length > len(data):
        raise MessageError("the header is longer than the message or than 1 MiB")
    start = _PREFIX.size + length
    return strict_json(bytes(data[_PREFIX.size : start])), data[start:]


def strict_json(data: bytes) -> dict[str, Any]:
    """A JSON object without duplicate keys, NaN or Infinity.

    Raises:
        MessageError: it is anything else.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    def number(word: str) -> float:
        value = float(word)
        if not math.isfinite(value):  # NaN, Infinity and 1e999
            raise ValueError(f"{word} is not a finite number")
        return value

    try:
        text = str(data, "utf-8")  # json.loads itself would guess UTF-16 and UTF-32 too
        value = json.loads(text, object_pairs_hook=once, parse_float=number, parse_constant=number)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"the header is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise MessageError("the header is not a JSON object")
    return value


def _tensors(body: memoryview) -> dict[str, Vector]:
    """The arrays of a safetensors file, which are read where they lie if `body` cannot change and they are aligned.

    As strict as the library, which would copy each of them twice: every byte belongs to exactly one array.
    """
    length = int.from_bytes(body[:8], "little")
    if len(body) < 8 or length > min(HEADER_LIMIT, len(body) - 8):
        raise MessageError("the vectors cannot be read (cut short, or a table of more than 1 MiB)")
    table, values = strict_json(bytes(body[8 : 8 + length])), body[8 + length :]
    if not values.readonly:
        values = memoryview(bytes(values))
    out, stop = dict[str, Vector](), 0
    for name, dtype, shape, start, end in sorted((_entry(*item) for item in table.items()), key=lambda e: e[3:]):
        if start != stop or end > len(values):
            raise MessageError("the vectors cannot be read (holes or overlaps)", where=name)
        try:
            array = np.frombuffer(values[start:end], dtype).reshape(shape)
        except (ValueError, OverflowError) as error:
            raise MessageError(f"the shape cannot be had ({error})", where=name) from None
        out[name], stop = fixed(array if array.flags.aligned else array.copy()), end
    if stop != len(values):
        raise MessageError(f"the vectors cannot be read ({len(values) - stop} bytes follow them)")
    return out


def _entry(name: str, entry: Any) -> tuple[str, np.dtype[Any], list[int], int, int]:
    """One line of the table: name, dtype, shape, and where it starts and ends."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise MessageError("is not described by dtype, shape and data_offsets", where=name)
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not all(isinstance(some, list) and all(type(n) is int and n >= 0 for n in some) for some in (shape, offsets)):
        raise MessageError("has a shape or offsets that are no whole numbers", where=name)
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise MessageError(f"dtype {entry['dtype']!r} is not known", where=name)
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise MessageError("has other bytes than its shape needs", where=name)
    return name, dtype, shape, offsets[0], offsets[1]


_DTYPES = {
    word: np.dtype(kind)
    for word, kind in zip("F16 F32 F64 I8 U8 I32 I64".split(), "<f2 <f4 <f8 i1 u1 <i4 <i8".split(), strict=True)
}
_WORDS = {kind: word for word, kind in _DTYPES.items()}


def _check(name: str, value: Any) -> None:
    if name in _INTEGERS and type(value) is not int:
        raise MessageError(f"{value!r} is not an integer", where=name)
    if name in _STRINGS and not isinstance(value, str):
        raise MessageError(f"{value!r} is not a string", where=name)
    if name == "kind" and value not in get_args(Kind):
        raise MessageError(f"{value!r} is not one of {get_args(Kind)}", where=name)
    if name in ("metrics", "config") and not isinstance(value, dict):
        raise MessageError(f"{value!r} is not an object", where=name)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def sound(metrics: Any) -> bool:
    """True if `metrics` maps plain names to ints or floats (not bools) of at most 1e100, and is of sensible size."""
    if not isinstance(metrics, Mapping) or len(metrics) > 10_000:
        return False
    return all(isinstance(k, str) and _METRIC.fullmatch(k) for k in metrics) and all(
        type(v) in (int, float) and -_LARGEST <= v <= _LARGEST for v in metrics.values()
    )
