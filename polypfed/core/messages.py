"""Task, Update, Evaluation, Failure: what travels in a round, and their bytes.

Wire format: `PFED`, version, header length (uint32, little endian), JSON header, safetensors body. No pickle anywhere.
Each named vector is one flat float32 tensor, so that a message costs the same for 4 layers as for 400.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy

from polypfed.core.errors import MessageError
from polypfed.core.model import Vector

Kind = Literal["fit", "evaluate"]
_MAGIC = b"PFED\x01"
_HEADER_LIMIT = 1 << 20
_PREFIX = struct.Struct("<5sI")


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Task:
    """Server to client: do `kind` with these vectors.

    Attributes:
        round: the server round, from 1 (0 is the evaluation of the initial model).
        kind: "fit" or "evaluate".
        vectors: "model" is the global model, (P,); the others are what the strategy broadcasts, (T,).
        config: JSON values: `seed`, `strategy`, `run`, `accepted` (the last round in which this client's update counted).
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
    """Client to server: `vectors["delta"]` = local model - global model, (P,); `weight` = examples trained on."""

    client: str
    round: int
    vectors: Mapping[str, Vector]
    weight: int
    metrics: Mapping[str, float] = field(default_factory=_empty)
    run: str = ""


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
_INTEGERS, _STRINGS = {"round", "weight"}, {"client", "run", "reason", "detail", "kind"}


def stamp(reply: Reply, run: str) -> Reply:
    """The same reply, marked as belonging to `run`."""
    return replace(reply, run=run)


def encode(message: Message) -> bytes:
    """The message as bytes; `decode` gives it back.

    Raises:
        MessageError: a metric or config value is not plain JSON.
    """
    fields = {k: getattr(message, k) for k in message.__dataclass_fields__ if k != "vectors"}
    vectors = {k: np.ascontiguousarray(v) for k, v in getattr(message, "vectors", {}).items()}
    header = {"type": type(message).__name__} | {k: dict(v) if isinstance(v, Mapping) else v for k, v in fields.items()}
    try:
        head = json.dumps(header, separators=(",", ":"), default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise MessageError(f"cannot be written as JSON ({error})", where=type(message).__name__) from None
    return _PREFIX.pack(_MAGIC, len(head)) + head + safetensors.numpy.save(vectors)


def decode(data: bytes | memoryview, *, limit: int | None = None) -> Message:
    """The message in `data`; its vectors are read-only views into `data` where alignment allows.

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
    if kind in (Task, Update):
        header["vectors"] = _tensors(bytes(body))
    names = set(kind.__dataclass_fields__)
    if set(header) != names:
        raise MessageError(f"fields {sorted(set(header) ^ names)} are missing or unknown", where=kind.__name__)
    for name, value in header.items():
        _check(name, value)
    return kind(**header)


def _split(data: memoryview) -> tuple[dict[str, Any], memoryview]:
    if len(data) < _PREFIX.size:
        raise MessageError(f"only {len(data)} bytes")
    magic, length = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise MessageError("does not begin like a polypfed message")
    if length > _HEADER_LIMIT or _PREFIX.size + length > len(data):
        raise MessageError("the header is longer than the message or than 1 MiB")
    start = _PREFIX.size + length
    return strict_json(bytes(data[_PREFIX.size : start])), data[start:]


def strict_json(text: bytes) -> dict[str, Any]:
    """A JSON object without duplicate keys, NaN or Infinity.

    Raises:
        MessageError: it is anything else.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    def never(word: str) -> None:
        raise ValueError(f"{word} is not a number")

    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=never)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"the header is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise MessageError("the header is not a JSON object")
    return value


def _tensors(body: bytes) -> dict[str, Vector]:
    try:
        found = safetensors.deserialize(body)
    except safetensors.SafetensorError as error:
        raise MessageError(f"the vectors cannot be read ({error})") from None
    out: dict[str, Vector] = {}
    for name, tensor in found:
        dtype = _DTYPES.get(tensor["dtype"])
        if dtype is None:
            raise MessageError(f"dtype {tensor['dtype']} is not known", where=name)
        out[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    return out


_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I8": "i1", "U8": "u1", "I32": "<i4", "I64": "<i8"}


def _check(name: str, value: Any) -> None:
    if name in _INTEGERS and type(value) is not int:
        raise MessageError(f"{value!r} is not an integer", where=name)
    if name in _STRINGS and not isinstance(value, str):
        raise MessageError(f"{value!r} is not a string", where=name)
    if name in ("metrics", "config") and not isinstance(value, dict):
        raise MessageError(f"{value!r} is not an object", where=name)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def finite(metrics: Mapping[str, Any]) -> bool:
    """True if every metric is a finite int or float (not a bool)."""
    return all(type(v) in (int, float) and math.isfinite(v) for v in metrics.values())
